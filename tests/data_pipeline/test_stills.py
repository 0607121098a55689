"""Picture files: the colours that they state, wide modes, damage; every value against the definitions in float64."""

import io
import struct
import zlib

import numpy as np
import pytest
from data_pipeline import icc
from data_pipeline.test_colours import FROM_709, light_to_srgb, pq, srgb_to_light
from PIL import Image, ImageCms

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.stills import is_picture, read_image
from mova_engine.errors import MovaError
from mova_engine.inference.requests import read_frame

PATCHES = np.array([[230, 40, 40], [40, 200, 60], [40, 60, 210], [128, 128, 128], [255, 255, 255], [90, 120, 60]])
TO_709 = {code: np.linalg.inv(matrix) for code, matrix in FROM_709.items()}


def picture(patches=PATCHES):
    return np.repeat(np.asarray(patches, np.uint8)[None], 8, axis=0).repeat(8, axis=1)


def seen(path, patches=PATCHES):
    return read_image(path, 8, 8 * len(patches))[4, 4::8].astype(int)


def save(path, image=None, **options):
    (Image.fromarray(picture()) if image is None else image).save(path, **options)
    return path


def coded(light):
    return 255 * light_to_srgb(np.clip(light, 0, 1))


FORMATS = {"png": {}, "tiff": {}, "webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("form", FORMATS)
def test_display_p3_as_of_every_iphone(tmp_path, form):
    profile = icc.lamps("p3", icc.srgb_curve())
    got = seen(save(tmp_path / f"photo.{form}", icc_profile=profile, **FORMATS[form]))
    np.testing.assert_allclose(got, coded(srgb_to_light(PATCHES / 255) @ TO_709[12].T), atol=4 if form == "jpg" else 2)
    profile = icc.lamps("p3", icc.power_curve(2.2))
    got = seen(save(tmp_path / f"photo.{form}", icc_profile=profile, **FORMATS[form]))
    np.testing.assert_allclose(got[0], [252, 0, 5], atol=9 if form == "jpg" else 3)


def test_adobe_rgb_by_profile_and_by_exif(tmp_path):
    d50_to_709 = np.linalg.inv(np.array(icc.LAMPS["srgb"]).T)
    wanted = coded((PATCHES / 255) ** (563 / 256) @ (d50_to_709 @ np.array(icc.LAMPS["adobe"]).T).T)
    profile = icc.lamps("adobe", icc.power_curve(563 / 256))
    np.testing.assert_allclose(seen(save(tmp_path / "profile.png", icc_profile=profile)), wanted, atol=2)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    got = seen(save(tmp_path / "exif.jpg", exif=exif, quality=100, subsampling=0))
    np.testing.assert_allclose(got, wanted, atol=4)


def test_pictures_in_srgb_are_left_bit_for_bit(tmp_path):
    """Also where a profile's rounding would change some values by one."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    own, rounded = icc.lamps("srgb", icc.srgb_curve()), icc.lamps("srgb, rounded", icc.srgb_curve())
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), own, rounded):
        for image in (Image.fromarray(pixels), Image.fromarray(pixels[..., 0])):
            image.save(tmp_path / "photo.png", icc_profile=profile)
            np.testing.assert_array_equal(read_image(tmp_path / "photo.png", 64, 64), np.array(image.convert("RGB")))
    applied = ImageCms.profileToProfile(
        Image.fromarray(pixels), io.BytesIO(rounded), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert np.abs(np.array(applied).astype(int) - pixels).max() in (1, 2)


def test_grey_profiles(tmp_path):
    grey = Image.fromarray(picture()[..., 0])
    profile = icc.grey(icc.power_curve(1.0))
    wanted = np.repeat(coded(PATCHES[:, :1] / 255), 3, axis=1)
    np.testing.assert_allclose(seen(save(tmp_path / "linear.png", grey, icc_profile=profile)), wanted, atol=2)
    transparent = Image.merge("LA", [grey, Image.new("L", grey.size, 255)])
    np.testing.assert_allclose(seen(save(tmp_path / "alpha.png", transparent, icc_profile=profile)), wanted, atol=2)


def test_inks_by_their_profile(tmp_path):
    """Cyan of this press is L* 50, a* -30, b* -40; Pillow alone takes the inks for ideal ones."""

    def lab(c, m, y, k):
        return (0, 0, 0) if k else (100 - 50 * c - 20 * m - 5 * y, -30 * c + 40 * m, -40 * c + 40 * y)

    inks = np.zeros((8, 16, 4), np.uint8)
    inks[:, 8:, 0] = 255
    path = tmp_path / "press.jpg"
    Image.fromarray(inks, mode="CMYK").save(path, icc_profile=icc.inks(lab), quality=100)
    fy = (50 + 16) / 116
    xyz = np.array(icc.D50) * np.array([fy - 30 / 500, fy, fy + 40 / 200]) ** 3
    cyan = coded(np.linalg.inv(np.array(icc.LAMPS["srgb"]).T) @ xyz)
    np.testing.assert_allclose(seen(path, [0, 1]), [[255, 255, 255], cyan], atol=4)


@pytest.mark.parametrize("profile", [b"no profile", icc.grey(icc.power_curve(1.0)), icc.inks(lambda *_: (50, 0, 0))])
def test_profiles_that_do_not_fit_are_told_and_not_applied(tmp_path, profile, caplog):
    path = save(tmp_path / "photo.png", icc_profile=profile)
    np.testing.assert_array_equal(seen(path), PATCHES)
    assert f"{path}: its ICC profile does not fit the picture and is not applied" in caplog.text


def png(path, *chunks):
    """A PNG of the patches with chunks before its pixels."""
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "png")
    data = buffer.getvalue()
    made = b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    path.write_bytes(data[:33] + made + data[33:])
    return path


P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
REC709 = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
GAMMA = {gamma: struct.pack(">I", gamma) for gamma in (45455, 100000, 55556)}
ICCP = b"p3\0\0" + zlib.compress(icc.lamps("p3", icc.srgb_curve()))
AS_STORED, IN_P3 = PATCHES, coded(srgb_to_light(PATCHES / 255) @ TO_709[12].T)
PNG_CASES = {
    "ordinary gamma and primaries": ([(b"gAMA", GAMMA[45455]), (b"cHRM", REC709)], AS_STORED),
    "linear": ([(b"gAMA", GAMMA[100000])], coded(PATCHES / 255)),
    "a Macintosh's 1.8": ([(b"gAMA", GAMMA[55556])], coded((PATCHES / 255) ** (1 / 0.55556))),
    "P3 by its primaries": ([(b"cHRM", P3)], IN_P3),
    "sRGB, whatever the primaries": ([(b"sRGB", b"\0"), (b"gAMA", GAMMA[100000]), (b"cHRM", P3)], AS_STORED),
    "a profile before gamma": ([(b"iCCP", ICCP), (b"gAMA", GAMMA[100000])], IN_P3),
    "P3 by code points": ([(b"cICP", bytes((12, 13, 0, 1)))], IN_P3),
    "code points before a profile": ([(b"cICP", bytes((1, 13, 0, 1))), (b"iCCP", ICCP)], AS_STORED),
    "limited range": ([(b"cICP", bytes((1, 13, 0, 0)))], np.clip((PATCHES - 16.0) / 219 * 255, 0, 255)),
    "primaries without meaning": ([(b"cHRM", bytes(32))], AS_STORED),
    "a curve without meaning": ([(b"cICP", bytes((1, 3, 0, 1)))], AS_STORED),
}


@pytest.mark.parametrize("case", PNG_CASES)
def test_what_png_states(tmp_path, case):
    chunks, wanted = PNG_CASES[case]
    np.testing.assert_allclose(seen(png(tmp_path / "photo.png", *chunks)), wanted, atol=2)


@pytest.mark.parametrize("form", ["png", "avif"])
def test_hdr_pictures(tmp_path, form):
    """PQ in 8 bits, whose steps are coarse: up to 3 of 255 near white."""
    wanted = np.array([[230, 60, 60], [128, 128, 128], [235, 235, 235]])
    stored = Image.fromarray(picture(np.round(255 * pq((wanted / 255) ** 2.4 @ FROM_709[9].T))))
    path = tmp_path / f"hdr.{form}"
    if form == "avif":
        stored.save(path, quality=100, subsampling="4:4:4")
        data = path.read_bytes()
        at = data.index(b"colrnclx") + 8
        path.write_bytes(data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :])
    else:
        buffer = io.BytesIO()
        stored.save(buffer, "png")
        chunk = b"cICP" + bytes((9, 16, 0, 1))
        data = buffer.getvalue()
        path.write_bytes(data[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])
    np.testing.assert_allclose(seen(path, wanted), wanted, atol=5)


def test_sixteen_bits_and_fractions_are_scaled(tmp_path):
    ramp = np.linspace(0, 1, 16)[None].repeat(4, 0)
    wanted = np.round(ramp[0] * 255)
    sixteen = Image.fromarray(np.round(ramp * 65535).astype(np.uint16))
    save(tmp_path / "a.png", sixteen), save(tmp_path / "a.tiff", sixteen)
    save(tmp_path / "a.pgm", sixteen)
    save(tmp_path / "f.tiff", Image.fromarray(ramp.astype(np.float32)))
    save(tmp_path / "zero.tiff", sixteen, tiffinfo={262: 0})
    for name in ("a.png", "a.tiff", "a.pgm", "f.tiff"):
        got = read_image(tmp_path / name, 4, 16)
        np.testing.assert_allclose(got[0, :, 1], wanted, atol=1, err_msg=name)
    np.testing.assert_allclose(read_image(tmp_path / "zero.tiff", 4, 16)[0, :, 0], wanted[::-1], atol=1)


@pytest.mark.parametrize("values", [np.full((4, 4), 300, np.int32), np.full((4, 4), 2.0, np.float32)])
def test_values_without_a_white_are_refused(tmp_path, values):
    with pytest.raises(MovaError, match=r"a.tiff: .* state no white; save it with 8 or 16 bits"):
        read_image(save(tmp_path / "a.tiff", Image.fromarray(values)), 4, 4)


def test_every_mode_that_pillow_writes_is_read_or_refused_in_a_line(tmp_path):
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"):
        for form in ("png", "tiff", "jpg", "webp", "bmp", "gif", "ppm", "tga", "avif", "ico", "jp2", "pcx", "sgi"):
            try:
                Image.new(mode, (16, 16)).save(tmp_path / f"a.{form}")
            except (OSError, ValueError, KeyError, NotImplementedError):
                continue
            try:
                assert read_image(tmp_path / f"a.{form}", 16, 16).shape == (16, 16, 3)
            except MovaError as error:
                assert str(tmp_path / f"a.{form}") in str(error) and "\n" not in str(error)
                assert mode in ("I", "F"), (mode, form, str(error))


def test_damage_of_every_kind_is_one_line(tmp_path):
    rng = np.random.default_rng(0)
    for form, options in FORMATS.items():
        path = save(tmp_path / f"a.{form}", icc_profile=icc.lamps("p3", icc.srgb_curve()), exif=Image.Exif(), **options)
        data = path.read_bytes()
        for _ in range(40):
            spoilt = bytearray(data[: rng.integers(8, len(data) + 1)])
            for place in rng.integers(0, len(spoilt), 6):
                spoilt[place] = rng.integers(256)
            path.write_bytes(bytes(spoilt))
            try:
                read_image.__wrapped__(path, 16, 16)
            except MovaError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


def test_pictures_beyond_all_size_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    large, huge = Image.new("L", (1200, 1200)), Image.new("L", (1600, 1600))
    assert read_image.__wrapped__(save(tmp_path / "large.png", large), 8, 8).shape == (8, 8, 3)
    path = save(tmp_path / "huge.png", huge)
    with pytest.raises(MovaError, match="huge.png: a picture of more than 2 megapixels is not read"):
        read_image.__wrapped__(path, 8, 8)
    assert is_picture.__wrapped__(path)


@pytest.mark.parametrize("form", ["gif", "png", "webp"])
def test_of_an_animation_the_first_picture_is_read(tmp_path, form):
    first, second = Image.fromarray(picture()), Image.fromarray(255 - picture())
    first.save(
        tmp_path / f"a.{form}", save_all=True, append_images=[second], **({"lossless": True} if form == "webp" else {})
    )
    np.testing.assert_allclose(seen(tmp_path / f"a.{form}"), PATCHES, atol=8)


def test_heif_is_refused_as_a_picture(tmp_path):
    """FFmpeg would give one tile of it."""
    path = tmp_path / "photo.heic"
    path.write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(12))
    assert is_picture(path)
    with pytest.raises(MovaError, match="photo.heic: is HEIF, which cannot be read; convert it"):
        read_frame(path, ClipConfig(frames=1, height=32, width=32))


def test_what_pillow_passes_over_is_told_by_name(tmp_path, caplog):
    path = save(tmp_path / "photo.tiff", icc_profile=icc.lamps("p3", icc.srgb_curve()))
    data = bytearray(path.read_bytes())
    entry = data.index(struct.pack("<H", 34675))
    data[entry + 4 : entry + 8] = struct.pack("<I", 1 << 20)  # a profile longer than the file
    path.write_bytes(bytes(data))
    np.testing.assert_array_equal(seen(path), PATCHES)
    assert caplog.text.count(f"{path}: is read although damaged or unusual (Tag data larger than file") == 1
