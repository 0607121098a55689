"""Orientation, transparency and fields: what a player shows of stored pictures, in photos and in videos."""

import io
import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from data_pipeline import icc
from data_pipeline.media import every, write_media
from PIL import Image

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import probe_shown, read_clip
from mova_engine.data.media.interlacing import deinterlace
from mova_engine.data.media.orientation import from_matrix, swaps_sides, turn_upright
from mova_engine.data.media.pictures import choose_decoder
from mova_engine.data.media.stills import read_image
from mova_engine.errors import MovaError

# Red, green, blue, white from top left to bottom right, and wider than tall.
UPRIGHT = np.zeros((64, 96, 3), np.uint8)
UPRIGHT[:32, :48], UPRIGHT[:32, 48:], UPRIGHT[32:, :48], UPRIGHT[32:, 48:] = (
    (220, 30, 30),
    (30, 220, 30),
    (30, 30, 220),
    235,
)

# How a picture is stored that EXIF's number, or the display matrix, makes upright. Written with Pillow's names.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# a, b, c, d of ISO/IEC 14496-12: (x, y) is shown at (a x + c y, b x + d y).
MATRICES = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip


def stored(number):
    image = Image.fromarray(UPRIGHT)
    return image if STORED[number] is None else image.transpose(STORED[number])


def write_video(path, pictures, codec="libx264", form="yuv420p", *, options=None, fps=24, aspect=None, fields="prog"):
    """fields: "prog", "tff" or "bff", as FFmpeg's setfield has it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], form
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        graph = av.filter.Graph()
        source = graph.add_buffer(width=stream.width, height=stream.height, format=form, time_base=Fraction(1, fps))
        mark, sink = graph.add("setfield", f"mode={fields}"), graph.add("buffersink")
        source.link_to(mark)
        mark.link_to(sink)
        graph.configure()
        for index, picture in enumerate(pictures):
            layout = "rgb24" if picture.shape[-1] == 3 else "rgba"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout).reformat(format=form)
            frame.pts, frame.time_base = index, Fraction(1, fps)
            graph.vpush(frame)
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode(None))
    return path


def set_matrix(path, coefficients):
    a, b, c, d = (round(value * 65536) for value in coefficients)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


def first_picture(path, height, width):
    return read_clip(path, ClipConfig(frames=1, height=height, width=width), silent="zeros").video[0]


@pytest.mark.parametrize("number", MATRICES)
def test_all_eight_display_matrices(tmp_path, number):
    path = write_video(tmp_path / "clip.mp4", [np.array(stored(number))], options={"crf": "5"})
    picture = first_picture(set_matrix(path, MATRICES[number]), 64, 96)
    assert np.abs(picture.astype(int) - UPRIGHT).mean() < 4
    assert probe_shown.__wrapped__(path)[:2] == (96, 64)


@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tiff", "avif"])
def test_all_eight_orientations_of_photos(tmp_path, form, number):
    exif = Image.Exif()
    exif[0x0112] = number
    options = {"quality": 95} if form in ("jpg", "avif") else {"lossless": True} if form == "webp" else {}
    stored(number).save(tmp_path / f"photo.{form}", exif=exif, **options)
    assert np.abs(read_image(tmp_path / f"photo.{form}", 64, 96).astype(int) - UPRIGHT).mean() < 4


@pytest.mark.parametrize("number", STORED)
def test_one_function_turns_both(number):
    pixels = np.array(stored(number))
    np.testing.assert_array_equal(turn_upright(pixels, number), UPRIGHT)
    assert swaps_sides(number) == (pixels.shape != UPRIGHT.shape)
    a, b, c, d = (round(value * 65536 * 1.5) for value in MATRICES[number])
    assert from_matrix(np.array([a, b, 0, c, d, 0, 7, 7, 1 << 30], np.int32)) == number


@pytest.mark.parametrize(
    ("stated", "number"),
    [
        ("rotate=90", 8),
        ("rotate=180", 3),
        ("flip=horizontal", 2),
        ("flip=vertical", 4),
        ("rotate=90:flip=horizontal", 5),
    ],
)
def test_orientation_stated_in_the_stream_itself(tmp_path, stated, number):
    """H.264's display orientation: mirrored first, then turned to the left (H.264, D.2.27)."""
    plain = write_video(tmp_path / "plain.ts", [np.array(stored(number))] * 20, options={"crf": "5"})
    path = tmp_path / "clip.ts"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream, copy = source.streams.video[0], target.add_stream_from_template(source.streams.video[0])
        states = BitStreamFilterContext(f"h264_metadata=display_orientation=insert:{stated}", stream, copy)
        for packet in source.demux(stream):
            for changed in states.filter(packet if packet.size else None):
                changed.stream = copy
                target.mux(changed)
    assert np.abs(first_picture(path, 64, 96).astype(int) - UPRIGHT).mean() < 4


def test_orientations_that_do_not_exist_count_as_upright(tmp_path):
    for number in (0, 9, 77):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(UPRIGHT).save(tmp_path / "photo.png", exif=exif)
        np.testing.assert_array_equal(read_image(tmp_path / "photo.png", 64, 96), UPRIGHT)


@pytest.mark.parametrize(
    "coefficients", [(0.7071, 0.7071, -0.7071, 0.7071), (1, 0.5, 0, 1), (0.996, 0.0872, -0.0872, 0.996)]
)
def test_other_angles_are_refused_by_name(tmp_path, coefficients):
    path = set_matrix(write_video(tmp_path / "clip.mp4", [UPRIGHT]), coefficients)
    with pytest.raises(MovaError, match=r"clip.mp4: its display matrix turns by .* only quarter turns"):
        first_picture(path, 64, 96)


@pytest.mark.parametrize("number", [1, 6])
def test_pixel_aspect_turns_with_the_picture(tmp_path, number):
    """Stored pixels twice as wide as tall: lying, the picture is 192 wide; standing, 192 tall."""
    path = write_video(tmp_path / "clip.mp4", [UPRIGHT], options={"crf": "5"}, aspect=Fraction(2))
    clip = ClipConfig(frames=1, height=64 if number == 1 else 192, width=192 if number == 1 else 64)
    # In this process, which has what resizing needs.
    shown = read_clip.__wrapped__(set_matrix(path, MATRICES[number]), clip, silent="zeros").video[0]
    wide = np.repeat(UPRIGHT, 2, axis=1)
    wanted = wide if number == 1 else np.rot90(wide, -1)
    assert np.abs(shown.astype(int) - wanted).mean() < 4
    assert probe_shown.__wrapped__(path)[:2] == wanted.shape[1::-1]


# The left half is transparent over a colour that nobody is to see; the right half is covered.
GLASS = np.zeros((64, 96, 4), np.uint8)
GLASS[:, :48], GLASS[:, 48:] = (0, 255, 0, 0), (200, 30, 30, 255)
TRANSPARENT_VIDEOS = [
    ("mov", "qtrle", "argb"), ("mov", "prores_ks", "yuva444p10le"), ("mov", "png", "rgba"), ("mkv", "ffv1", "yuva420p"),
    ("webm", "libvpx-vp9", "yuva420p"), ("webm", "libvpx", "yuva420p"), ("avi", "utvideo", "gbrap"),
    ("apng", "apng", "rgba"),
]  # fmt: skip


def over_white(picture, atol=3):
    np.testing.assert_allclose(picture[32, [20, 76]].astype(int), [[255, 255, 255], [200, 30, 30]], atol=atol)


@pytest.mark.parametrize(("container", "codec", "form"), TRANSPARENT_VIDEOS)
def test_transparent_videos_stand_before_white(tmp_path, container, codec, form):
    options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
    path = write_video(tmp_path / f"clip.{container}", [GLASS] * 3, codec, form, options=options)
    over_white(first_picture(path, 64, 96))


@pytest.mark.parametrize("form", ["png", "webp", "tiff", "gif", "palette.png", "avif"])
def test_transparent_pictures_stand_before_white(tmp_path, form):
    image = Image.fromarray(GLASS)
    if form == "palette.png":
        image = Image.fromarray((GLASS[..., 3] > 0).astype(np.uint8)).convert("P")
        image.putpalette([0, 255, 0, 200, 30, 30])
        image.info["transparency"] = 0
    image.save(tmp_path / f"logo.{form}", **({"lossless": True} if form == "webp" else {}))
    over_white(read_image(tmp_path / f"logo.{form}", 64, 96))


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 8, 9)), ("1", 0), ("I;16", 1000)])
def test_a_colour_that_stands_for_transparent(tmp_path, mode, colour):
    image = Image.new(mode, (16, 16), colour)
    image.save(tmp_path / "key.png", transparency=colour)
    assert (read_image(tmp_path / "key.png", 16, 16) == 255).all()


@pytest.mark.parametrize("number", STORED)
def test_transparency_turns_with_the_picture(tmp_path, number):
    image, exif = Image.fromarray(GLASS), Image.Exif()
    exif[0x0112] = number
    image = image if STORED[number] is None else image.transpose(STORED[number])
    image.save(tmp_path / "logo.png", exif=exif)
    over_white(read_image(tmp_path / "logo.png", 64, 96))


def test_half_transparent_is_half_white(tmp_path):
    glass = GLASS.copy()
    glass[..., :3], glass[..., 3] = (200, 30, 30), 128
    Image.fromarray(glass).save(tmp_path / "glass.png")
    np.testing.assert_array_equal(read_image(tmp_path / "glass.png", 64, 96)[0, 0], [227, 142, 142])
    grey = Image.merge("LA", [Image.new("L", (96, 64), 30), Image.new("L", (96, 64), 128)])
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 64, 96)[0, 0], [142, 142, 142])


def bar(n):
    """A bar that moves by 4 pixels from one field to the next."""
    image = np.full((64, 96, 3), 16, np.uint8)
    image[:, 4 * n % 80 : 4 * n % 80 + 16] = 235
    return image


def woven(count, top_first=True):
    frames = []
    for n in range(count):
        image, second = bar(2 * n), bar(2 * n + 1)
        image[top_first::2] = second[top_first::2]
        frames.append(image)
    return frames


def comb(picture):
    lines = picture[..., 1].astype(int)
    return np.abs(lines[1:-1:2] - (lines[:-2:2] + lines[2::2]) / 2).mean()


INTERLACED = [("mp4", "libx264", "yuv420p"), ("ts", "mpeg2video", "yuv420p"), ("mov", "prores_ks", "yuv422p10le")]


@pytest.mark.parametrize("fields", ["tff", "bff"])
@pytest.mark.parametrize(("container", "codec", "form"), INTERLACED)
def test_interlaced_videos_come_out_whole(tmp_path, container, codec, form, fields):
    """Each picture is its frame's first field, at its place and time, and not combed."""
    options = {"flags": "+ilme+ildct", "b": "4M"}
    pictures = woven(30, top_first=fields == "tff")
    path = write_video(tmp_path / f"clip.{container}", pictures, codec, form, options=options, fps=25, fields=fields)
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).interlaced_frame
    clip = read_clip(path, ClipConfig(frames=17, height=64, width=96, fps=25.0), silent="zeros")
    assert comb(pictures[5]) > 15
    for index, picture in enumerate(clip.video):
        assert comb(picture) < 6 and np.abs(picture.astype(int) - bar(2 * index)).mean() < 8, index


def test_progressive_frames_pass_unchanged_between_interlaced_ones(tmp_path):
    """As in films shown at video's rate; none is lost, and each keeps its time."""
    path = write_video(tmp_path / "clip.mp4", woven(8), options={"flags": "+ilme+ildct"}, fields="tff")
    with av.open(str(path)) as file:
        interlaced = list(file.decode(video=0))
    path = write_video(tmp_path / "whole.mp4", [bar(n) for n in range(6)])
    with av.open(str(path)) as file:
        whole = list(file.decode(video=0))
    frames = [*whole[:2], *interlaced[:3], *whole[2:4], *interlaced[3:]]
    times = [Fraction(k, 24) for k in range(len(frames))]
    for index, frame in enumerate(frames):
        frame.pts, frame.time_base = index, Fraction(1, 24)
    came = list(deinterlace(zip(times, frames, strict=True), "clip"))
    assert [time for time, _ in came] == times
    for (_, made), frame in zip(came, frames, strict=True):
        assert (made is frame) == (not frame.interlaced_frame) and not made.interlaced_frame
        assert made.duration * made.time_base == frame.duration * frame.time_base


@pytest.mark.parametrize("form", ["nv12", "uyvy422", "p010le", "gray12le", "yuva444p12le", "bgra"])
def test_deinterlaced_frames_of_any_layout_keep_what_is_stated(tmp_path, form):
    path = write_video(tmp_path / "clip.mp4", woven(3), options={"flags": "+ilme+ildct"}, fields="tff")
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
    stated = {"colorspace": 9, "color_range": 2, "color_trc": 18, "color_primaries": 9}
    for frame in frames:
        for name, value in stated.items():
            setattr(frame, name, value)
    frames = [set_like(frame.reformat(format=form), frame) for frame in frames]
    for _, made in deinterlace(((Fraction(k), frame) for k, frame in enumerate(frames)), "clip"):
        assert {name: getattr(made, name) for name in stated} == stated and not made.interlaced_frame
        assert len(made.format.components) == len(frames[0].format.components) or form == "gray12le"


def set_like(made, frame):
    made.pts, made.time_base = frame.pts, frame.time_base
    for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(made, name, getattr(frame, name))
    assert made.interlaced_frame
    return made


def test_hevc_with_a_picture_for_each_field_is_refused(tmp_path):
    path = write_media(tmp_path / "clip.mp4", every(24, 2), None)
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))

    class Field:
        interlaced_frame = True
        format, width, height = frame.format, frame.width, frame.height

    with pytest.raises(MovaError, match="clip.mp4: is HEVC with a picture for each field"):
        next(deinterlace(iter([(Fraction(0), Field())]), "clip.mp4", "hevc"))


def test_what_is_read_as_it_is_stored_is_told(tmp_path, caplog):
    path = write_video(tmp_path / "pair.mp4", [UPRIGHT] * 2, options={"crf": "5", "x264-params": "frame-packing=3"})
    for _ in range(2):
        assert np.abs(first_picture(path, 64, 96).astype(int) - UPRIGHT).mean() < 4
    assert caplog.text.count(f"{path}: states stereoscopic pictures, which are read as they are stored") == 1
    own = SimpleNamespace(name="libdav1d")
    for _ in range(2):
        assert (
            choose_decoder(SimpleNamespace(metadata={"alpha_mode": "1"}, codec_context=own), tmp_path / "a.mkv") is own
        )
    assert caplog.text.count("a.mkv: states transparency, which cannot be read of libdav1d") == 1


@pytest.mark.parametrize(("form", "codec", "pixels"), [("jpg", "mjpeg", "yuvj420p"), ("png", "png", "rgb24")])
@pytest.mark.parametrize("container", ["mov", "avi"])
def test_icc_profiles_of_pictures_in_motion(tmp_path, form, codec, pixels, container):
    """The pictures of a camera, put into a container as they are. PNG's name their profile, which kills PyAV."""
    profile = icc.lamps("p3", icc.power_curve(2.2))
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (230, 40, 40)).save(
        data, "jpeg" if form == "jpg" else form, icc_profile=profile, quality=100
    )
    with av.open(str(tmp_path / f"clip.{container}"), "w") as file:
        stream = file.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        for index in range(3):
            packet = av.Packet(data.getvalue())
            packet.pts, packet.dts, packet.duration, packet.time_base = index, index, 1, Fraction(1, 24)
            packet.stream, packet.is_keyframe = stream, True
            file.mux(packet)
    for _ in range(3):
        picture = first_picture(tmp_path / f"clip.{container}", 64, 64)
        np.testing.assert_allclose(picture[32, 32].astype(int), [252, 0, 5], atol=9)
