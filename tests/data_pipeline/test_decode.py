"""Real files of every kind come out at the model's frame rate, in step; bad ones are refused by name."""

from fractions import Fraction

import numpy as np
import pytest
from data_pipeline.media import barcode, click_time, clicks, every, read_barcode, write_media

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import probe, read_clip
from mova_engine.data.media.pictures import exact_rate, pick_frames
from mova_engine.data.media.resize import crop_resize
from mova_engine.data.media.stills import read_image
from mova_engine.errors import MovaError

CLIP = ClipConfig(frames=33, height=48, width=48)
HEARD = (0.3, 1.0)  # seconds
SOUND = clicks(HEARD, 2.0)
SAMPLE = 1 / 48000


def shown_times(clip, times) -> np.ndarray:
    """When, in its file, each of a clip's pictures appears, in seconds after the first."""
    return np.array([float(times[read_barcode(picture)] - times[0]) for picture in clip.video])


def variable_rate(duration: float) -> list[Fraction]:
    """Pictures that stay for 8 to 500 ms."""
    steps = np.random.default_rng(1).choice([1000, 2000, 4000, 5005, 15000, 60000], size=60) * Fraction(1, 120_000)
    times = np.concatenate([[Fraction(0)], np.cumsum(steps)])
    return [time for time in times if time < duration]


@pytest.mark.parametrize(
    ("rate", "early", "late"),
    [(24, 0, 0), (Fraction(24000, 1001), 0, 0.0014), (30, 1 / 60, 1 / 60), (60, 1 / 120, 1 / 120), (12, 1 / 24, 0)],
)
def test_any_constant_rate_is_resampled_by_time(tmp_path, rate, early, late):
    """Each picture is at most half a source frame off: no drift, and all of them where the rates agree."""
    times = every(rate, int(2 * rate))
    clip = read_clip(write_media(tmp_path / "clip.mp4", times, SOUND), CLIP)
    assert clip.video.shape == (33, 48, 48, 3) and clip.video.dtype == np.uint8
    error = shown_times(clip, times) - np.arange(33) / 24
    assert -early - 1e-6 <= error.min() and error.max() <= late + 1e-6


def test_a_variable_rate_is_resampled_by_time(tmp_path):
    times = variable_rate(2.0)
    assert len(set(np.diff([float(t) for t in times]).round(6))) > 4
    clip = read_clip(write_media(tmp_path / "clip.mp4", times, SOUND), CLIP)
    seconds = np.array([float(t) for t in times])
    for k, shown in enumerate(shown_times(clip, times)):
        on_display = seconds[seconds <= k / 24 + 1e-9].max()
        coming = seconds[(seconds > k / 24 + 1e-9) & (seconds <= k / 24 + 1 / 48)]
        assert any(np.isclose(shown, t) for t in (on_display, *coming)), f"picture {k}"
    for time in HEARD:
        assert abs(click_time(clip.audio, time) - time) < 2 * SAMPLE


def test_a_picture_that_stands_for_long_is_not_replaced_early():
    frames = iter([(Fraction(0), "a"), (Fraction(1), "b"), (Fraction(2), None)])
    wanted = [Fraction(k, 10) for k in range(25)]
    shown = list(pick_frames(frames, wanted, reach=Fraction(1, 20)))
    assert shown == ["a"] * 10 + ["b"] * 10


@pytest.mark.parametrize(("rate", "channels"), [(48000, 1), (44100, 2), (48000, 6), (8000, 1)])
def test_sound_keeps_its_time_and_level(tmp_path, rate, channels):
    sound = clicks(HEARD, 2.0, rate, channels)
    clip = read_clip(write_media(tmp_path / "clip.mp4", every(24, 48), sound, sample_rate=rate), CLIP)
    assert clip.audio.shape == (CLIP.audio_samples,) and clip.audio.dtype == np.float32
    for time in HEARD:
        assert abs(click_time(clip.audio, time) - time) < 2 * SAMPLE
    # The same in both channels must not become louder; in six it would exceed full scale, and is scaled down to it.
    assert clip.audio.max() == pytest.approx(0.8 if channels < 6 else 1.0, abs=0.03)


def test_sound_before_the_first_picture_is_cut(tmp_path):
    path = write_media(tmp_path / "clip.mp4", every(24, 48, Fraction(1, 5)), clicks([0.1, 0.5, 1.2], 2.3))
    audio = read_clip(path, CLIP).audio
    assert abs(click_time(audio, 0.3) - 0.3) < 2 * SAMPLE and abs(click_time(audio, 1.0) - 1.0) < 2 * SAMPLE
    assert np.abs(audio[:9600]).max() < 0.02  # the click 100 ms before the first picture


def test_late_sound_is_padded(tmp_path):
    # mp4's clock for a late start counts milliseconds of (start - priming): a whole number of them.
    path = write_media(tmp_path / "clip.mp4", every(24, 48), clicks([0.2, 0.9], 1.9), sound_start=4800 + 1024)
    audio = read_clip(path, CLIP).audio
    start = (4800 + 1024) * SAMPLE
    assert not audio[: 4800 + 1024 - 64].any()
    for time in (0.2 + start, 0.9 + start):
        assert abs(click_time(audio, time) - time) < 2 * SAMPLE


def test_sound_goes_on_beyond_the_last_picture(tmp_path):
    """1.375 s of pictures are 66,000 samples, whole latents 66,240."""
    sound = np.full((1, 96000), 0.25) * np.sin(np.arange(96000) / 10)
    audio = read_clip(write_media(tmp_path / "clip.mp4", every(24, 48), sound), CLIP).audio
    assert len(audio) == 66240
    np.testing.assert_allclose(audio[66000:], sound[0, 66000:66240], atol=0.01)


@pytest.mark.parametrize(
    ("start", "gop", "first"), [(0.5, 250, 0), (2.0, 250, 0), (2.0, 12, Fraction(1, 4)), (3.25, 7, 0)]
)
def test_start_offset_moves_picture_and_sound_alike(tmp_path, start, gop, first):
    """With few pictures to seek to and with many, from files whose clock does not begin at zero."""
    times = every(30, 180, first)
    sound = clicks([float(first) + start + t for t in HEARD], 6.5)
    path = write_media(tmp_path / "clip.mp4", times, sound, gop=gop)
    clip = read_clip(path, CLIP, start=start)
    assert np.abs(shown_times(clip, times) - start - np.arange(33) / 24).max() <= 1 / 60 + 1e-6
    for time in HEARD:
        assert abs(click_time(clip.audio, time) - time) < 2 * SAMPLE


def test_a_gap_in_the_sound_stays_a_gap(tmp_path):
    """A recorder that lost sound: what follows must not move up."""
    path = write_media(tmp_path / "clip.mp4", every(24, 48), SOUND + 0.05, lost=(0.5, 0.7))
    audio = read_clip(path, CLIP).audio
    assert not audio[round(0.55 * 48000) : round(0.65 * 48000)].any() and audio[round(0.8 * 48000)] > 0.02
    for time in HEARD:
        assert abs(click_time(audio, time) - time) < 2 * SAMPLE


def test_wide_and_tall_pictures_are_cropped_at_the_centre(tmp_path):
    for size in ((48, 96), (96, 48)):
        path = write_media(tmp_path / f"{size}.mp4", every(24, 48), SOUND, size=size)
        height, width = size
        whole = barcode(21, height, width)
        top, left = (height - 48) // 2, (width - 48) // 2
        picture = read_clip(path, CLIP).video[21]
        assert np.abs(picture.astype(int) - whole[top : top + 48, left : left + 48]).mean() < 6


def test_pictures_are_turned_upright(tmp_path):
    """A phone's film: stored lying, with a matrix in the track header that turns it a quarter clockwise."""
    path = write_media(tmp_path / "clip.mp4", every(24, 48), SOUND)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version, times and ids, reserved and volume
    fixed = np.array([0, 1, 0, -1, 0, 0, 48, 0, 0]) * 65536 + np.array([0] * 8 + [1 << 30])
    data[matrix : matrix + 36] = fixed.astype(">i4").tobytes()
    path.write_bytes(bytes(data))
    stored = barcode(21, 48, 48).astype(int)
    picture = read_clip(path, CLIP).video[21].astype(int)
    assert np.abs(picture - np.rot90(stored, -1)).mean() < 6 < np.abs(picture - stored).mean()


def test_probe(tmp_path):
    info = probe(write_media(tmp_path / "clip.mp4", every(24, 48), clicks(HEARD, 2, 44100, 2), sample_rate=44100))
    assert (info.width, info.height, info.sample_rate) == (48, 48, 44100)
    assert info.fps == pytest.approx(24) and info.duration == pytest.approx(2)
    assert probe(write_media(tmp_path / "silent.mp4", every(30, 30), None)).sample_rate == 0


def test_exact_rates():
    assert exact_rate(24.0) == 24 and exact_rate(24000 / 1001) == Fraction(24000, 1001)


def write_with_unknown(kind: bytes):
    """Write a file whose index gives a stream a kind that nobody has heard of."""

    def write(path):
        path.write_bytes(write_media(path, every(24, 48), SOUND).read_bytes().replace(kind, b"zzzz"))

    return write


BAD = {
    "no such file": lambda path: None,
    "damaged or cut short: cannot be decoded": lambda path: path.write_bytes(b"not a film" * 200),
    "damaged or cut short: cannot": lambda path: path.write_bytes(b""),
    "too short: it gives 1 of the clip's 33 frames": lambda path: write_media(path, every(24, 1), SOUND),
    "too short: it gives 20 of the clip's 33": lambda path: write_media(path, every(24, 20), SOUND),
    "has no sound track": lambda path: write_media(path, every(24, 48), None),
    "sound track is silent": lambda path: write_media(path, every(24, 48), 0 * SOUND),
    "damaged, or its video is of an unknown kind": write_with_unknown(b"avc1"),
    "covers only 0.4": lambda path: write_media(path, every(24, 48), SOUND[:, :20000]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_refused_by_name(tmp_path, message):
    path = tmp_path / "bad.mp4"
    BAD[message](path)
    with pytest.raises(MovaError, match=message) as caught:
        read_clip(path, CLIP)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.7, 0.9])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = write_media(tmp_path / "whole.mp4", every(24, 48), SOUND, faststart=True)
    data = path.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(MovaError, match="cut.mp4: (damaged|cut short)"):
        read_clip(cut, CLIP)


def test_damage_inside_a_file_is_refused_or_harmless(tmp_path):
    """Random bytes overwritten: the clip is refused, or comes out as it was; never quietly wrong."""
    rng = np.random.default_rng(0)
    noise = SOUND + 0.05 * rng.standard_normal(SOUND.shape)
    path = write_media(tmp_path / "whole.mp4", every(24, 48), noise)
    good, data = read_clip(path, CLIP), path.read_bytes()
    media = data.index(b"mdat") + 4
    end = data.index(b"moov", media) - 4
    refused = 0
    for _ in range(12):
        spoilt = bytearray(data)
        for position in rng.integers(media, end, size=20):
            spoilt[position] = rng.integers(256)
        path.write_bytes(bytes(spoilt))
        try:
            clip = read_clip(path, CLIP)
        except MovaError as error:
            refused += str(path) in str(error)
        else:
            np.testing.assert_array_equal(clip.video, good.video)
    assert refused > 6


def test_sound_is_not_needed_when_asked(tmp_path):
    silent = write_media(tmp_path / "silent.mp4", every(24, 48), None)
    for choice in ("zeros", "mask"):
        clip = read_clip(silent, CLIP, silent=choice)
        assert not clip.audio.any() and not clip.heard
    partly = write_media(tmp_path / "partly.mp4", every(24, 48), SOUND[:, : round(0.4 * len(SOUND[0]))])
    assert read_clip(partly, CLIP, silent="mask").heard
    with pytest.raises(MovaError, match="silent must be one of refuse, zeros, mask, got 'maybe'"):
        read_clip(silent, CLIP, silent="maybe")
    with pytest.raises(MovaError, match="start must be seconds from 0 to 1e9, got -1"):
        read_clip(silent, CLIP, start=-1)


def test_one_picture_is_a_clip_of_one_frame(tmp_path):
    path = write_media(tmp_path / "one.mp4", every(24, 1), clicks([0.02], 1.0))
    clip = read_clip(path, ClipConfig(frames=1, height=48, width=48))
    assert clip.video.shape == (1, 48, 48, 3) and len(clip.audio) == 3 * 960


def test_shrinking_does_not_alias():
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the small picture can show: must come out grey
    small = crop_resize(stripes, 16, 16)
    assert np.abs(small.astype(int) - 127).max() < 12
    assert crop_resize(stripes, 96, 96) is not None and (crop_resize(stripes, 96, 96) == stripes).all()
    # Pixels twice as wide as tall: 48 of them are as wide as 96 rows are tall.
    assert (crop_resize(stripes[:, :48], 96, 48, pixel_aspect=2.0)[:, 0] == stripes[:, 0]).all()


def test_pictures_are_read_like_frames(tmp_path):
    from PIL import Image

    whole = barcode(0b101101110010, 96, 160)
    Image.fromarray(whole).save(tmp_path / "first.png")
    np.testing.assert_array_equal(read_image(tmp_path / "first.png", 48, 48), crop_resize(whole, 48, 48))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nonsense")
    for name, message in (("bad.png", "not a readable picture"), ("none.png", "no such file")):
        with pytest.raises(MovaError, match=f"{name}: {message}"):
            read_image(tmp_path / name, 48, 48)
