"""Fingerprints of real pictures and sound stay nearly the same through what encoders do, and differ between clips."""

from pathlib import Path

import av
import numpy as np
import pytest

from mova_engine.curation.duplicates import MOST_PICTURE_BITS, MOST_SOUND_BITS
from mova_engine.curation.fingerprints import (
    PICTURE_BITS,
    RATE,
    SOUND_BITS,
    clip_fingerprint,
    picture_fingerprint,
    picture_places,
    sound_fingerprint,
    words_of,
)
from mova_engine.data.media.write import write_mp4
from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import DecodedClip

MEDIA = Path(__file__).parents[1] / "data" / "media"
TALKING = MEDIA / "talking_real_speech.mp4"


def differing(one, other, bits):
    """Bits in which two fingerprints differ."""
    first, second = words_of([one, other], bits)
    return int(np.bitwise_count(first ^ second).sum())


@pytest.fixture(scope="module")
def talking():
    return DecodedClip.read(TALKING)


@pytest.fixture(scope="module")
def pictures(talking):
    """The four that a fingerprint is made of."""
    return [picture.copy() for picture in talking.pictures_of(picture_places(talking.times))]


@pytest.mark.long
def test_a_clip_encoded_anew_keeps_its_fingerprint(talking, tmp_path):
    """Smaller, at another rate, of lower quality, brighter and quieter."""
    film = talking.pictures_in(288, 512)[::2]
    sound = np.asarray(talking.sound_with_pictures(48000), np.float32)
    brighter = np.clip(film * 1.15 + 8, 0, 255).astype(np.uint8)
    write_mp4(tmp_path / "again.mp4", brighter, 0.3 * sound, fps=12, crf=34, audio_bit_rate=32000)
    before, after = clip_fingerprint(talking), clip_fingerprint(DecodedClip.read(tmp_path / "again.mp4"))
    assert differing(before.pictures, after.pictures, PICTURE_BITS) <= MOST_PICTURE_BITS // 2
    assert differing(before.sound, after.sound, SOUND_BITS) <= MOST_SOUND_BITS // 2


@pytest.mark.parametrize("share", [0.01, 0.02, 0.03])
def test_a_small_crop_keeps_the_fingerprint_of_pictures(pictures, share):
    rows, columns = (round(share * side) for side in pictures[0].shape[:2])
    cropped = [picture[rows:-rows, columns:-columns] for picture in pictures]
    assert differing(picture_fingerprint(pictures), picture_fingerprint(cropped), PICTURE_BITS) <= MOST_PICTURE_BITS


def test_other_pictures_have_another_fingerprint(pictures):
    mirrored = [picture[:, ::-1] for picture in pictures]
    upside_down = [picture[::-1] for picture in pictures]
    own = picture_fingerprint(pictures)
    for other in (mirrored, upside_down):
        assert differing(own, picture_fingerprint(other), PICTURE_BITS) > 2 * MOST_PICTURE_BITS


@pytest.mark.parametrize(("rows", "columns", "place"), [(0, 1, 0), (1, 0, 1), (1, 1, 3), (3, 0, 8)])
def test_a_wave_is_the_bit_of_its_frequency(rows, columns, place):
    """A picture of any size, of one wave over its rows and one over its columns."""
    across, down = ((np.arange(side) + 0.5) / side for side in (320, 200))
    wave = np.cos(np.pi * rows * down)[:, None] * np.cos(np.pi * columns * across)
    picture = np.repeat((128 + 100 * wave)[..., None], 3, 2).astype(np.uint8)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(picture_fingerprint([picture])), np.uint8))
    inverse = np.unpackbits(np.frombuffer(bytes.fromhex(picture_fingerprint([255 - picture])), np.uint8))
    assert len(bits) == 64 and (bits[place], inverse[place]) == (1, 0)


def test_other_words_of_one_voice_have_another_fingerprint(talking):
    sound = np.asarray(talking.sound(RATE), np.float32)
    half = len(sound) // 2
    own = sound_fingerprint(sound)
    for other in (sound[::-1].copy(), np.roll(sound, half), np.concatenate([sound[half:], sound[:half][::-1]])):
        assert differing(own, sound_fingerprint(other), SOUND_BITS) > 2 * MOST_SOUND_BITS


@pytest.mark.parametrize(("codec", "rate"), [("mp3", 32000), ("aac", 32000), ("libopus", 24000)])
def test_coded_sound_keeps_its_fingerprint(talking, tmp_path, codec, rate):
    sound = np.asarray(talking.sound(48000), np.float32)
    file = tmp_path / "sound.mka"
    with av.open(str(file), "w") as out:
        stream = out.add_stream(codec, rate=48000, layout="mono")
        stream.bit_rate = rate
        frame = av.AudioFrame.from_ndarray((sound[None] * 32767).astype(np.int16), "s16", "mono")
        frame.rate = 48000
        resampler = av.AudioResampler(stream.format.name, "mono", 48000, frame_size=stream.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    coded = np.asarray(DecodedClip.read(file).sound(RATE), np.float32)
    own = sound_fingerprint(np.asarray(talking.sound(RATE), np.float32))
    assert differing(own, sound_fingerprint(coded), SOUND_BITS) <= MOST_SOUND_BITS // 2


def test_the_loudness_and_a_little_delay_do_not_matter(talking):
    sound = np.asarray(talking.sound(RATE), np.float32)
    own = sound_fingerprint(sound)
    assert differing(own, sound_fingerprint(0.05 * sound), SOUND_BITS) <= 4
    late = np.concatenate([np.zeros(RATE // 20, np.float32), sound])[: len(sound)]
    assert differing(own, sound_fingerprint(late), SOUND_BITS) <= MOST_SOUND_BITS // 2


def test_what_shows_or_sounds_like_nothing_has_no_fingerprint(tmp_path):
    assert sound_fingerprint(np.zeros(RATE, np.float32)) == sound_fingerprint(np.ones(100, np.float32)) == ""
    with pytest.raises(MovaError, match="show nothing"):
        picture_fingerprint([np.full((90, 160, 3), 80, np.uint8)] * 4)
    write_mp4(tmp_path / "black.mp4", np.zeros((24, 64, 64, 3), np.uint8), np.zeros(48000, np.float32))
    found = clip_fingerprint(DecodedClip.read(tmp_path / "black.mp4"))
    assert (found.pictures, found.sound) == (None, "")


def test_pictures_are_chosen_by_time_whatever_their_rate():
    even = [k / 24 for k in range(97)]
    uneven = [*even[:40:8], *even[40:]]
    for times in (even, uneven, [k / 60 for k in range(241)]):
        assert [times[i] for i in picture_places(times)] == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=1 / 3)
    assert picture_places([0.0]) == [0, 0, 0, 0]


def test_words_are_read_as_they_were_written():
    assert words_of(["f" * 48, ""], SOUND_BITS).tolist() == [[2**64 - 1] * 3, [0, 0, 0]]
    assert words_of(["0" * 15 + "1" + "0" * 32], SOUND_BITS)[0, 0] == 1
    for wrong in ("12", "x" * 48):
        with pytest.raises(MovaError, match="48 hexadecimal digits"):
            words_of([wrong], SOUND_BITS)
