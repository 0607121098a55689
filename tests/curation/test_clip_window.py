"""A part of a film, read as a clip for scores: the pictures and samples of the whole file at the same times."""

from fractions import Fraction

import numpy as np
import pytest
from data_pipeline.media import every, read_barcode, write_media
from lossless_clip import write_lossless

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import read_clip as read_for_model
from mova_engine.data.media.orientation import turn_upright
from mova_engine.errors import MovaError
from mova_engine.scores.clip_reader import read_clip
from mova_engine.scores.clip_window import stored_box
from mova_engine.scores.decoded_clip import DecodedClip

RATE = 48000


def noise(seconds, channels=1):
    drawn = np.random.default_rng(1)
    return 0.2 * drawn.standard_normal((channels, round(seconds * RATE))).astype(np.float32)


def numbers(clip):
    return [read_barcode(picture) for picture in clip.pictures_of(range(len(clip.times)))]


@pytest.mark.parametrize("start", [Fraction(0), Fraction(17, 24), Fraction(121, 24), Fraction(5041667, 1000000)])
def test_a_part_has_the_pictures_and_samples_of_the_whole(tmp_path, start):
    path = write_media(tmp_path / "film.mp4", every(24, 240), noise(10, 2), gop=48)
    whole, part = DecodedClip.read(path), read_clip(path, start=start, seconds=Fraction(49, 24))
    first = round(start * 24)
    assert numbers(part) == list(range(first, first + 49))
    assert [float(time) for time in part.times] == pytest.approx([k / 24 for k in range(49)], abs=2e-6)
    begin = round(float(start) * RATE)
    assert part.soundtrack.start == 0 and part.soundtrack.samples.shape == (49 * 2000, 2)
    assert np.array_equal(part.soundtrack.samples, whole.soundtrack.samples[begin : begin + 49 * 2000])


def test_a_part_has_the_pictures_that_training_reads(tmp_path):
    """Of a film with a variable rate: every picture that a clip of the model shows is among the part's."""
    steps = np.random.default_rng(3).choice([1, 2, 5, 12], 150)
    times = [Fraction(int(each), 60) for each in np.cumsum(steps) - steps[0]]
    path = write_media(tmp_path / "film.mp4", times, None, hold=Fraction(1, 5), gop=20)
    for start in (0.5, 3.31, 7.0):
        part = read_clip(path, start=start, seconds=49 / 24)
        shape = ClipConfig(frames=49, height=48, width=48)
        shown = {read_barcode(picture) for picture in read_for_model(path, shape, start=start, silent="zeros").pictures}
        found = numbers(part)
        assert shown <= set(found) and found == list(range(found[0], found[-1] + 1)) and found[0] == min(shown)
        wanted = [max(0.0, float(times[i]) - start) if k else 0.0 for k, i in enumerate(found)]
        assert [float(time) for time in part.times] == pytest.approx(wanted, abs=1e-4)


def test_sound_that_starts_late_or_ends_early_is_placed(tmp_path):
    drawn = np.random.default_rng(0).integers(-9000, 9000, 2 * RATE).astype(np.int16)
    pictures = np.zeros((125, 32, 32, 3), np.uint8)
    path = write_lossless(tmp_path / "film.mkv", pictures, drawn, rate=RATE, sound_start=1.5)
    late = DecodedClip.read(path, start=1.2, seconds=1).soundtrack
    assert late.start == pytest.approx(0.3, abs=1e-9) and len(late.samples) == round(0.7 * RATE)
    assert np.array_equal(late.samples[:, 0], drawn[: len(late.samples)])
    early = DecodedClip.read(path, start=3.0, seconds=1).soundtrack
    assert early.start == 0 and np.array_equal(early.samples[:, 0], drawn[round(1.5 * RATE) :])
    with pytest.raises(MovaError, match="there is no sound"):
        _ = DecodedClip.read(path, start=4.0, seconds=1).soundtrack


def test_a_crop_is_that_of_upright_pictures(tmp_path):
    pictures = np.random.default_rng(2).integers(0, 255, (5, 40, 64, 3), np.uint8)
    path = write_lossless(tmp_path / "film.mkv", pictures)
    part = read_clip(path, crop=(7, 4, 32, 20), seconds=5 / 25)
    assert part.size == (20, 32) and len(part.times) == 5
    assert np.array_equal(np.stack(list(part.pictures_of(range(5)))), pictures[:, 4:24, 7:39])
    assert np.array_equal(part.pictures_in(20, 32), pictures[:, 4:24, 7:39])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_is_turned_as_pictures_are(orientation):
    stored = np.arange(30 * 50).reshape(30, 50)
    upright = turn_upright(stored, orientation)
    left, top, right, bottom = stored_box((3, 5, 20, 11), (30, 50), orientation, 1.0)
    found = turn_upright(stored[top:bottom, left:right], orientation)
    assert np.array_equal(found, upright[5:16, 3:23])


def test_stored_pixels_that_are_not_square_are_counted_as_shown():
    assert stored_box((32, 0, 64, 40), (40, 64), 1, 2.0) == (16, 0, 48, 40)


def test_what_is_not_in_the_film_is_refused(tmp_path):
    path = write_media(tmp_path / "film.mp4", every(24, 48), None)
    with pytest.raises(MovaError, match="no picture is on display 3 s after the first"):
        read_clip(path, start=3, seconds=1)
    with pytest.raises(MovaError, match="is not within pictures of 48x48"):
        read_clip(path, crop=(0, 0, 50, 48))
    assert numbers(read_clip(path, start=1.5, seconds=1)) == list(range(36, 48))
