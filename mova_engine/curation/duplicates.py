"""Which clips are near-duplicates of better ones, by their fingerprints: pictures and sound must both be alike.

Candidates are clips that agree in one of 16 bands of 16 bits of their pictures (after Indyk and Motwani, "Approximate
Nearest Neighbors", 1998, and Norouzi et al., "Fast Exact Search in Hamming Space with Multi-Index Hashing", 2014); only
they are compared. What comes out depends on the clips alone, not on their order.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mova_engine.curation.fingerprints import PICTURE_BITS, PICTURES, SOUND_BITS, Words, words_of

Indices = NDArray[np.int64]
# Bits in which the pictures of one film may differ, and the sounds; of silent clips the pictures alone tell.
MOST_PICTURE_BITS, MOST_SOUND_BITS, MOST_SILENT_BITS = 48, 36, 24
# Bands of a picture's word, and their bits.
_BANDS, _BAND = 4, 16
# Clips in a row that agree in a band of which each is compared with the others; where more agree, those that also agree
# in a band of their sound come together.
_MOST_ALIKE = 64


def duplicates_of(
    clips: Sequence[str], pictures: Sequence[str | None], sounds: Sequence[str | None], areas: Sequence[float]
) -> list[str | None]:
    """For each clip the better clip that it is a near-duplicate of; None for a clip that stays.

    clips: unique ids. pictures, sounds: `picture_fingerprint` and `sound_fingerprint` of each; None: not known, such a
    clip stays. areas: pixels of a picture. Of clips that are alike the one with the largest picture stays, of equal
    ones that with the first id; a clip that is dropped is itself like the one that is named. Raises MovaError for text
    that is no fingerprint.
    """
    known = [i for i in range(len(clips)) if pictures[i] and sounds[i] is not None]
    # From the best clip on.
    order = sorted(known, key=lambda i: (-areas[i], clips[i]))
    seen = words_of([pictures[i] or "" for i in order], PICTURE_BITS)
    heard = words_of([sounds[i] or "" for i in order], SOUND_BITS)
    silent = np.array([not sounds[i] for i in order], bool)
    found: list[str | None] = [None] * len(clips)
    for worse, better in _kept_of(alike_pairs(seen, heard, silent)).items():
        found[order[worse]] = clips[order[better]]
    return found


def alike_pairs(seen: Words, heard: Words, silent: NDArray[np.bool_]) -> Indices:
    """Pairs [n, 2] of numbers of clips that are alike, the lesser one first, in order.

    seen: uint64 [clips, 4]; heard: uint64 [clips, 3]; silent: bool [clips], those without a fingerprint of sound.
    """
    found = [np.zeros((0, 2), np.int64)]
    for picture in range(PICTURES):
        for band in range(_BANDS):
            keys = (seen[:, picture] >> np.uint64(64 - _BAND * (band + 1))).astype(np.uint16)
            order = np.argsort(keys, kind="stable")
            crowded = _crowded(keys[order])
            found.append(_alike(order, keys[order], seen, heard, silent))
            rest = np.sort(order[crowded])
            for part in range(4 * heard.shape[1]) if len(rest) else ():
                sound = (heard[rest, part // 4] >> np.uint64(16 * (part % 4))).astype(np.uint16)
                both = (keys[rest].astype(np.uint32) << 16) | sound
                inner = np.argsort(both, kind="stable")
                found.append(_alike(rest[inner], both[inner], seen, heard, silent))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _alike(
    order: Indices, keys: NDArray[np.unsignedinteger], seen: Words, heard: Words, silent: NDArray[np.bool_]
) -> Indices:
    """Pairs [n, 2] of clips that are alike among those with equal keys; `order` says which clip is at which place."""
    pictures, sounds, mute = seen[order], heard[order], silent[order]
    found = [np.zeros((0, 2), np.int64)]
    for step in range(1, min(_MOST_ALIKE, len(keys))):
        first = np.flatnonzero(keys[step:] == keys[:-step])
        if not len(first):
            break
        first = first[mute[first] == mute[first + step]]
        most = np.where(mute[first], MOST_SILENT_BITS, MOST_PICTURE_BITS)
        first = first[_differing(pictures, first, step) <= most]
        first = first[_differing(sounds, first, step) <= MOST_SOUND_BITS]
        found.append(np.stack([order[first], order[first + step]], 1))
    return np.concatenate(found)


def _differing(words: Words, first: Indices, step: int) -> NDArray[np.int64]:
    """Bits in which clips at places `first` differ from those `step` further on."""
    return np.bitwise_count(words[first] ^ words[first + step]).sum(1, dtype=np.int64)


def _crowded(keys: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """Which of sorted keys come more than `_MOST_ALIKE` times."""
    if not len(keys):
        return np.zeros(0, bool)
    counts = np.diff(np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1], [True]))))
    return np.repeat(counts > _MOST_ALIKE, counts)


def _kept_of(pairs: Indices) -> dict[int, int]:
    """{clip: the best clip that stays and is like it}; from the best on, a clip stays that is like none that does."""
    found: dict[int, int] = {}
    for worse, better in sorted((int(b), int(a)) for a, b in pairs):
        if worse not in found and better not in found:
            found[worse] = better
    return found
