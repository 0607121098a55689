"""Any number of loudspeaker channels to one, by ITU-R BS.775, at the level of stereo.

BS.775-4 (table 2) gives the stereo of 3/2 sound as `L' = L + 0.7071 C + 0.7071 Ls`, `R'` alike, and leaves LFE out; a
lone rear channel (3/1) goes to both sides at 0.5. One channel is then `(L' + R') / 2`, so that a 5.1 film is as loud as
its own stereo version, and mono sound stored in both channels as loud as mono. BS.775 knows no more channels than
these; the rules for others are ours:

* back and side pairs, and pairs above the listener: as Ls and Rs; the middle one of a row: as the lone rear one;
* channels in front beside the centre, and pairs below: as left and right;
* ambisonic sound: its zeroth channel, which is what an omnidirectional microphone hears; the others count nothing.

The weights may add up to more than 1. Who mixes has to look after what exceeds full scale (`sound.read_sound` does).
"""

import math
from collections.abc import Sequence

import numpy as np

from mova_engine.errors import MovaError

_HALF_POWER = math.sqrt(0.5)

_FRONT_PAIRS = (("FL", "FR"), ("FLC", "FRC"), ("WL", "WR"), ("DL", "DR"), ("BIL", "BIR"), ("BFL", "BFR"))
_SURROUND_PAIRS = (
    *(("SL", "SR"), ("BL", "BR"), ("SDL", "SDR"), ("SSL", "SSR")),
    *(("TFL", "TFR"), ("TSL", "TSR"), ("TBL", "TBR"), ("TTL", "TTR")),
)


def _sides(pairs: Sequence[tuple[str, str]], part: float) -> dict[str, tuple[float, float]]:
    return {left: (part, 0.0) for left, _ in pairs} | {right: (0.0, part) for _, right in pairs}


# A channel's parts in L' and R'.
STEREO_PARTS: dict[str, tuple[float, float]] = {
    "FC": (_HALF_POWER, _HALF_POWER),
    **_sides(_FRONT_PAIRS, 1.0),
    **_sides(_SURROUND_PAIRS, _HALF_POWER),
    **dict.fromkeys(("BC", "TC", "TFC", "TBC", "BFC"), (0.5, 0.5)),
    **dict.fromkeys(("LFE", "LFE2"), (0.0, 0.0)),
}


def mono_weights(channels: Sequence[str]) -> np.ndarray:
    """Weights float64 [c] of channels with FFmpeg's names ("FL", "LFE", "AMBI0") in the sum that is their mono sound.

    A single channel counts 1, whatever its place. Raises MovaError, without a file's name, for channels whose place is
    not known and for a layout that holds nothing but LFE.
    """
    if len(channels) == 1:
        return np.ones(1)
    unknown = [name for name in channels if name not in STEREO_PARTS and not name.startswith("AMBI")]
    if unknown and len(channels) > 2:
        raise MovaError(
            f"has {len(channels)} channels of unknown places ({', '.join(dict.fromkeys(unknown))}): "
            "mix its sound down to stereo first"
        )
    if unknown:
        return np.array([0.5, 0.5])
    weights = np.array([1.0 if name == "AMBI0" else sum(STEREO_PARTS.get(name, (0, 0))) / 2 for name in channels])
    if not weights.any():
        raise MovaError(f"has no channel but {' and '.join(channels)}, which do not count in a downmix")
    return weights


def pairs(channels: Sequence[str]) -> list[tuple[int, int]]:
    """Positions of the left and the right channel of each pair; of two channels without places, these two."""
    if len(channels) == 2 and not set(channels) & set(STEREO_PARTS):
        return [(0, 1)]
    known = [pair for pair in (*_FRONT_PAIRS, *_SURROUND_PAIRS) if set(pair) <= set(channels)]
    return [(channels.index(left), channels.index(right)) for left, right in known]
