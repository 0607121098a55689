"""What a frame states of its colours is undone: patches coded by the definitions come out as they went in.

The definitions are written down here in the direction of a camera, in float64: light of BT.709, other primaries, curve,
matrix, quantisation (H.273, BT.709, BT.2100, SMPTE ST 2084, IEC 61966-2-1).
"""

from collections import defaultdict
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from data_pipeline.media import usual_scheduling

from mova_engine.config.model import ClipConfig
from mova_engine.data.media import colour, warn
from mova_engine.data.media.colour import PRIMARIES, hlg_light, pq_light, to_709, to_display, tone_map
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.frames import SCALER, frame_colours, frame_pixels
from mova_engine.data.media.resize import crop_resize
from mova_engine.errors import MovaError

# Within the reach of all the primaries below.
PATCHES = np.array([[235, 235, 235], [200, 60, 60], [60, 200, 60], [60, 60, 200], [128, 128, 128], [0, 0, 0]])
SIDE = 8  # pixels

# From the light of BT.709 to that of others, as published: BT.2087; SMPTE EG 432-1; BT.601's two, inverted.
FROM_709 = {
    1: np.eye(3),
    9: np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]),
    12: np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]]),
    6: np.linalg.inv([[0.9395, 0.0502, 0.0103], [0.0178, 0.9658, 0.0164], [-0.0016, -0.0044, 1.0060]]),
    5: np.linalg.inv([[1.0440, -0.0440, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0118, 0.9882]]),
}
KR_KB = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
KR_KB[9] = (0.2627, 0.0593)


def srgb_to_light(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def light_to_srgb(light):
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def pq(light):
    y = (203 * light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg(light):
    """Through the inverse OOTF of a display of 1000 cd/m2 and the OETF, BT.2100 table 5."""
    display = 203 / 1000 * light
    luminance = np.maximum(display @ [0.2627, 0.6780, 0.0593], 1e-12)[..., None]
    scene = luminance ** ((1 - 1.2) / 1.2) * display
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


# For each curve: values of the picture to light, and light to stored values.
CURVES = {code: (lambda v: v**2.4, lambda light: light ** (1 / 2.4)) for code in (1, 6, 14, 15)}
CURVES |= {
    4: (lambda v: v**2.2, lambda light: light ** (1 / 2.2)),
    5: (lambda v: v**2.4, lambda light: light ** (1 / 2.8)),
    8: (srgb_to_light, lambda light: light),
    13: (srgb_to_light, light_to_srgb),
    16: (lambda v: v**2.4, pq),
    17: (lambda v: v**2.4, lambda light: (light * 48 / 52.37) ** (1 / 2.6)),
    18: (lambda v: v**2.4, hlg),
}


def stored_rgb(patches, transfer, primaries):
    """R'G'B' from 0 to 1 as a file of this curve and these primaries stores them."""
    to_light, to_stored = CURVES[transfer]
    return to_stored(np.clip(to_light(patches / 255) @ FROM_709[primaries].T, 0, None))


def in_planes(rgb, matrix, full, bits):
    """Planes in the file's order (Y, Cb, Cr; G, B, R for matrix 0), before they are rounded to integers."""
    r, g, b = np.moveaxis(rgb, -1, 0)
    top, unit = 2**bits - 1, 2 ** (bits - 8)
    if matrix == 0:
        return np.array([top * p if full else unit * (16 + 219 * p) for p in (g, b, r)])
    if matrix == 8:
        y, cb, cr = (r + 2 * g + b) / 4, (2 * g - r - b) / 4, (r - b) / 2
    else:
        kr, kb = KR_KB[matrix]
        y = kr * r + (1 - kr - kb) * g + kb * b
        cb, cr = (b - y) / 2 / (1 - kb), (r - y) / 2 / (1 - kr)
    luma = top * y if full else unit * (16 + 219 * y)
    return np.array([luma, *((top if full else 224 * unit) * c + 2 ** (bits - 1) for c in (cb, cr))])


def quantised(rgb, matrix, full, bits):
    return np.clip(np.round(in_planes(rgb, matrix, full, bits)), 0, 2**bits - 1).astype(int)


def make_frame(planes, form, bits):
    """A frame in which each value of the planes is a square of SIDE pixels."""
    frame = VideoFrame(len(planes[0]) * SIDE, SIDE, form)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((SIDE, plane.line_size // (2 if bits > 8 else 1)), np.uint16 if bits > 8 else np.uint8)
        rows[:, : frame.width] = np.repeat(values, SIDE)
        plane.update(rows.tobytes())
    return frame


def coded_frame(matrix, full, bits, transfer, primaries):
    planes = quantised(stored_rgb(PATCHES, transfer, primaries), matrix, full, bits)
    form = ("gbrp" if matrix == 0 else "yuv444p") + ("" if bits == 8 else f"{bits}le")
    frame = make_frame(planes, form, bits)
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    frame.color_trc, frame.color_primaries = transfer, primaries
    return frame


def seen(frame):
    picture = frame_pixels(frame, "clip", frame.height, frame.width, 1.0)
    return picture[frame.height // 2, SIDE // 2 :: SIDE].astype(int)


MATRICES = (0, 1, 4, 5, 6, 7, 8, 9)


def check_all(cases):
    """Coded anew, what is seen gives the stored values, but for half a step of those (and the four digits of the
    published matrices) and what one level of the picture, to which FFmpeg's scaler is exact, makes in them."""
    failed = {}
    for matrix, full, bits, transfer, primaries in cases:

        def coded(rgb, how=(matrix, full, bits), curve=(transfer, primaries)):
            return in_planes(stored_rgb(rgb, *curve), *how)

        true = coded(PATCHES)
        nudges = [np.clip(PATCHES + np.array(signs), 0, 255) for signs in product((-1, 1), repeat=3)]
        reach = np.max([np.abs(coded(nudged) - true) for nudged in nudges], axis=0)
        off = np.abs(coded(seen(coded_frame(matrix, full, bits, transfer, primaries))) - true)
        if (off > 0.5 + 2 ** (bits - 8) * 0.1 + reach).any():
            failed[matrix, full, bits, transfer, primaries] = (off - reach).max()
    assert not failed


def test_matrices_ranges_and_depths():
    check_all(product(MATRICES, (False, True), (8, 10, 12), (1,), (1,)))


def test_curves_and_primaries():
    check_all(product((9,), (False,), (8, 10, 12), CURVES, FROM_709))


@pytest.mark.slow
def test_every_combination():
    check_all(product(MATRICES, (False, True), (8, 10, 12), CURVES, FROM_709))


@pytest.mark.parametrize("form", ["gray", "gray10le", "ya8", "yuv420p", "nv12", "p010le", "uyvy422", "yuva420p"])
def test_limited_range_of_other_layouts(form):
    """Of grey pictures the scaler takes the full range, whatever is stated."""
    bits, grey = 10 if "10" in form else 8, form[:2] in ("gr", "ya")
    frame = make_frame(
        [[16 << bits - 8, 235 << bits - 8, 126 << bits - 8] * 2], "gray" if bits == 8 else "gray10le", bits
    )
    if form == "ya8":
        frame = frame.reformat(format="ya8")
    elif not grey:
        luma = np.array([16, 235, 126] * 2) << bits - 8
        planar = make_frame([luma, 0 * luma + (128 << bits - 8), 0 * luma + (128 << bits - 8)],
                            "yuv444p" if bits == 8 else "yuv444p10le", bits)  # fmt: skip
        planar.color_range = 1
        frame = planar.reformat(format=form)
    frame.color_range = 1
    np.testing.assert_allclose(seen(frame)[:, 0], [0, 255, 128] * 2, atol=1)


def test_ordinary_frames_are_bit_for_bit_what_the_scaler_makes():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    for form in ("yuv420p", "yuvj420p", "yuv422p10le", "nv12", "rgb24", "gbrp", "gray", "bgr0"):
        for matrix, full, transfer in product((1, 2, 6, 9), (1, 2), (1, 2, 13)):
            frame = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=form)
            known_range = form.startswith("yuv4") or form == "nv12"
            frame.colorspace, frame.color_range = matrix, full if known_range else 0
            frame.color_trc, frame.color_primaries = transfer, 1
            plain = frame.reformat(format="rgb24", interpolation=SCALER, threads=1).to_ndarray()
            np.testing.assert_array_equal(frame_pixels(frame, "clip", 24, 32, 1.0), crop_resize(plain, 24, 32))


@pytest.mark.parametrize(
    ("height", "width", "stated", "wanted"),
    [
        (480, 720, {}, 6),
        (576, 720, {}, 6),
        (720, 1280, {}, 1),
        (536, 1280, {}, 1),
        (1280, 720, {}, 1),
        (480, 720, {"color_primaries": 9}, 9),
        (480, 720, {"color_trc": 18}, 9),
        (1080, 1920, {"colorspace": 5}, 5),
    ],
)
def test_what_holds_for_untagged_frames(height, width, stated, wanted):
    frame = VideoFrame(width, height, "yuv420p")
    for name, value in stated.items():
        setattr(frame, name, value)
    colours = frame_colours(frame, "clip")
    assert colours.matrix == wanted and not colours.full
    assert colours.primaries == (9 if wanted == 9 else 1)


def test_hdr_white_and_highlights():
    """The reference white comes out near white, what is brighter keeps its order and its hue up to the peak."""
    for transfer, curve in ((16, pq), (18, hlg)):
        levels = np.array([0.5, 0.85, 1.0, 2.0, 4.0, 1000 / 203])[:, None] * np.ones(3)
        shown = to_display(curve(levels), transfer, 9)[:, 0].astype(int)
        np.testing.assert_allclose(shown[:2], 255 * np.array([0.5, 0.85]) ** (1 / 2.4), atol=1)
        assert 244 <= shown[2] < shown[3] < shown[4] <= shown[5] == 255
    orange = tone_map(np.array([[4.0, 2.0, 0.4]]))
    np.testing.assert_allclose(orange / orange[0, 0], [[1, 0.5, 0.1]])
    assert pq_light(np.array(1.0)) == pytest.approx(10000 / 203) and hlg_light(np.ones(3))[0] == pytest.approx(
        1000 / 203
    )


def test_every_primary_set_keeps_white_and_gives_its_own_light():
    """Against X, Y, Z, mixed of the three corners; other whites than D65 are adapted, so only white is known."""
    mixed = np.array([0.2, 0.5, 0.3])
    for code, corners in PRIMARIES.items():
        matrix = np.array(to_709(corners))
        np.testing.assert_allclose(matrix @ np.ones(3), 1, atol=1e-9, err_msg=str(code))
        if corners[3] == PRIMARIES[1][3]:
            np.testing.assert_allclose(
                xyz_of(matrix @ mixed, PRIMARIES[1]), xyz_of(mixed, corners), atol=1e-9, err_msg=str(code)
            )


def xyz_of(rgb, corners):
    """X, Y, Z of a mixture of three lamps whose full mixture is the white."""
    *lamps, (wx, wy) = [(x, y) for x, y in corners]
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in lamps])
    brightness = np.linalg.solve(xyz.T, [wx / wy, 1, (1 - wx - wy) / wy])
    return (rgb * brightness) @ xyz


@pytest.mark.parametrize("matrix", [10, 11, 12, 13, 14, 15, 16, 17])
def test_matrices_without_a_conversion_are_refused_by_name(matrix):
    frame = VideoFrame(16, 16, "yuv420p")
    frame.colorspace = matrix
    with pytest.raises(MovaError, match="^clip.mp4: its colours are coded as .*, which cannot be read") as caught:
        frame_pixels(frame, "clip.mp4", 16, 16, 1.0)
    assert colour.UNCONVERTED_MATRICES[matrix] in str(caught.value)


def test_dolby_vision_without_a_base_layer_is_refused():
    frame = SimpleNamespace(
        colorspace=2, color_trc=2, color_primaries=2, side_data={av.sidedata.sidedata.Type.DOVI_METADATA: b"x"},
        format=VideoFrame(16, 16, "yuv420p10le").format,
    )  # fmt: skip
    with pytest.raises(MovaError, match="^clip.mp4: is Dolby Vision"):
        frame_colours(frame, "clip.mp4")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"colorspace": 3}, "states matrix 3"),
        ({"color_trc": 3}, "states transfer curve 3"),
        ({"color_primaries": 19}, "states colour primaries 19"),
        ({"colorspace": 0}, "states an RGB matrix for Y'CbCr"),
    ],
)
def test_tags_without_meaning_are_told_once_and_not_believed(tags, words, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(warn, "_told", defaultdict(set))
    frame = VideoFrame(16, 16, "yuv420p")
    plain = frame_pixels(frame, "clip", 16, 16, 1.0)
    for name, value in tags.items():
        setattr(frame, name, value)
    for number in range(9):
        for _ in range(3):
            np.testing.assert_array_equal(frame_pixels(frame, tmp_path / f"{number}.mp4", 16, 16, 1.0), plain)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 6 and all(words in line for line in told)
    assert told[0].startswith(f"{tmp_path / '0.mp4'}: ") and "further files" in told[5]


KEEPS_TAGS = [("mp4", "libx264"), ("mov", "prores_ks"), ("mkv", "libx265"), ("webm", "libsvtav1"), ("ts", "libx264")]


@pytest.mark.parametrize(("container", "codec"), KEEPS_TAGS)
@pytest.mark.parametrize(
    ("matrix", "transfer", "primaries"), [(1, 1, 1), (9, 16, 9), (9, 18, 9), (5, 5, 5), (1, 13, 12)]
)
def test_tags_are_honoured_through_containers(tmp_path, container, codec, matrix, transfer, primaries):
    planes = quantised(stored_rgb(PATCHES, transfer, primaries), matrix, False, 10)
    frame = make_frame(planes, "yuv444p10le", 10)
    form = "yuv422p10le" if codec == "prores_ks" else "yuv420p10le"
    frame.color_range, frame.colorspace = 1, 1  # the scaler's business is the layout alone
    frame = frame.reformat(width=frame.width * 8, height=frame.height * 8, format=form, interpolation=SCALER)
    path = tmp_path / f"clip.{container}"
    options = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "12"}}.get(codec, {})
    with usual_scheduling(), av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=24, options=options | {"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, form
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 1
        context.color_trc, context.color_primaries = transfer, primaries
        for index in range(3):
            frame.pts, frame.time_base = index, Fraction(1, 24)
            frame.colorspace, frame.color_trc, frame.color_primaries = matrix, transfer, primaries
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    clip = ClipConfig(frames=1, height=frame.height, width=frame.width)
    picture = read_clip(path, clip, silent="zeros").video[0]
    np.testing.assert_allclose(picture[frame.height // 2, SIDE * 4 :: SIDE * 8].astype(int), PATCHES, atol=4)


def test_tags_that_change_between_frames_hold_for_each_frame():
    plain, wide = coded_frame(1, False, 8, 1, 1), coded_frame(9, False, 10, 18, 9)
    for frame in (plain, wide, plain):
        np.testing.assert_allclose(seen(frame), PATCHES, atol=2)
