"""Near-duplicates are found as comparing all pairs finds them, whatever the order of clips; the best clip stays."""

from pathlib import Path

import numpy as np
import pytest

from mova_engine.curation import duplicates
from mova_engine.curation.duplicates import (
    MOST_PICTURE_BITS,
    MOST_SILENT_BITS,
    MOST_SOUND_BITS,
    alike_pairs,
    duplicates_of,
)
from mova_engine.curation.fingerprints import PICTURE_BITS, SOUND_BITS, clip_fingerprint
from mova_engine.scores.decoded_clip import DecodedClip

MEDIA = Path(__file__).parents[1] / "data" / "media"


def text(words):
    return words.astype(">u8").tobytes().hex()


def drawn(seed, count):
    """Fingerprints of clips that have nothing in common, uint64 [count, 4] and [count, 3]."""
    numbers = np.random.default_rng(seed)
    return tuple(numbers.integers(0, 2**64, (count, words), dtype=np.uint64) for words in (4, 3))


def changed(words, bits, seed):
    """One fingerprint with so many of its bits turned."""
    flat = np.unpackbits(words.astype(">u8").view(np.uint8))
    flat[np.random.default_rng(seed).choice(len(flat), bits, replace=False)] ^= 1
    return np.packbits(flat).view(">u8").astype(np.uint64)


def groups(seen, heard, areas=None, order=None):
    ids = [f"{i:04d}" for i in range(len(seen))]
    order = list(range(len(seen))) if order is None else order
    areas = [1.0] * len(seen) if areas is None else areas
    found = duplicates_of(
        [ids[i] for i in order],
        [None if seen[i] is None else text(seen[i]) for i in order],
        [None if heard[i] is None else text(heard[i]) for i in order],
        [areas[i] for i in order],
    )
    return {ids[i]: better for i, better in zip(order, found, strict=True) if better is not None}


def test_pictures_and_sound_must_both_be_alike():
    seen, heard = drawn(0, 3)
    near, far = changed(seen[0], 12, 1), changed(seen[0], MOST_PICTURE_BITS + 1, 2)
    sound, other = changed(heard[0], 12, 3), changed(heard[0], MOST_SOUND_BITS + 1, 4)
    assert groups([*seen, near], [*heard, sound]) == {"0003": "0000"}
    assert groups([*seen, near], [*heard, other]) == {}
    assert groups([*seen, far], [*heard, sound]) == {}
    assert groups([*seen, near], [*heard, None]) == groups([*seen, None], [*heard, sound]) == {}


def test_silent_clips_are_alike_where_their_pictures_nearly_are_the_same():
    seen, _ = drawn(0, 1)
    none = np.zeros(0, np.uint64)
    assert groups([seen[0], changed(seen[0], MOST_SILENT_BITS, 1)], [none, none]) == {"0001": "0000"}
    assert groups([seen[0], changed(seen[0], MOST_SILENT_BITS + 1, 1)], [none, none]) == {}
    _, heard = drawn(1, 1)
    assert groups([seen[0], seen[0]], [none, heard[0]]) == {}


def test_the_largest_picture_stays_then_the_first_id_and_chains_do_not_grow():
    seen, heard = drawn(0, 1)
    sound = heard[0]
    assert groups([seen[0]] * 3, [sound] * 3, [1, 4, 4]) == {"0000": "0001", "0002": "0001"}
    # Of three clips in a row only neighbours are alike: the last one is not like the one that stays.
    middle = changed(seen[0], 30, 1)
    last = middle ^ (seen[0] ^ changed(seen[0], 30, 2))
    assert np.bitwise_count(seen[0] ^ last).sum() > MOST_PICTURE_BITS
    assert groups([seen[0], middle, last], [sound] * 3) == {"0001": "0000"}
    assert groups([seen[0], middle, last], [sound] * 3, [1, 2, 1]) == {"0000": "0001", "0002": "0001"}


def test_what_is_found_does_not_depend_on_the_order_of_clips():
    seen, heard = drawn(0, 400)
    numbers = np.random.default_rng(1)
    for i in range(200, 400):
        source = int(numbers.integers(200))
        seen[i], heard[i] = changed(seen[source], 20, i), changed(heard[source], 15, i)
    areas = numbers.integers(1, 4, 400).tolist()
    found = groups(seen, heard, areas)
    assert len(found) >= 190
    for seed in range(3):
        assert groups(seen, heard, areas, np.random.default_rng(seed).permutation(400).tolist()) == found


def test_no_pair_is_found_that_is_not_alike_and_few_are_missed():
    """Beside all pairs: 8 % of the pictures' bits and of the sound's turned."""
    seen, heard = drawn(0, 600)
    for i in range(300, 600):
        seen[i], heard[i] = changed(seen[i - 300], round(0.08 * PICTURE_BITS), i), changed(heard[i - 300], 15, i)
    found = {tuple(pair) for pair in alike_pairs(seen, heard, np.zeros(600, bool)).tolist()}
    pictures, sounds = (np.bitwise_count(x[:, None] ^ x[None]).sum(-1) for x in (seen, heard))
    every = np.argwhere(np.triu((pictures <= MOST_PICTURE_BITS) & (sounds <= MOST_SOUND_BITS), 1))
    assert found <= {tuple(pair) for pair in every.tolist()} and len(every) == 300
    assert len(found) >= 0.97 * len(every)


def test_many_clips_that_open_alike_are_told_by_their_sound(monkeypatch):
    """A crowd that agrees in its pictures, where each clip is compared with a few others alone."""
    monkeypatch.setattr(duplicates, "_MOST_ALIKE", 8)
    _, heard = drawn(0, 400)
    seen = np.repeat(drawn(1, 1)[0], 400, 0)
    for i in range(200, 400):
        heard[i] = changed(heard[i - 200], 5, i)
    expected = {f"{i:04d}": f"{i - 200:04d}" for i in range(200, 400)}
    assert groups(seen, heard) == expected


@pytest.mark.long
def test_real_clips_of_one_film_are_duplicates():
    """Two files of one film, one with its mouth 6 pictures later and encoded apart; and a film of other sound."""
    files = [MEDIA / "talking_real_speech.mp4", MEDIA / "talking_real_speech_audio_shifted_6_frames.mp4"]
    found = [clip_fingerprint(DecodedClip.read(file)) for file in files]
    pictures, sounds = [each.pictures for each in found], [each.sound for each in found]
    assert duplicates_of(["a", "b"], pictures, sounds, [1.0, 1.0]) == [None, "a"]
    assert duplicates_of(["a", "b"], pictures, [sounds[0], "0" * (SOUND_BITS // 4)], [1.0, 1.0]) == [None, None]


@pytest.mark.parametrize("count", [0, 1])
def test_few_clips_have_no_duplicates(count):
    assert groups(*(list(each) for each in drawn(0, count))) == {}
