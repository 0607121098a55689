"""Weights for mixing any loudspeaker layout down to mono, by ITU-R BS.775.

BS.775-4 (table 2) mixes 3/2 sound to stereo as `L' = L + 0.7071 C + 0.7071 Ls` (`R'` likewise) without the LFE channel;
a single rear channel (3/1) goes to both sides at 0.5. Mono is then `(L' + R') / 2`, so that 5.1 sound is as loud as its
stereo mix, and stereo with two equal channels as loud as mono. BS.775 defines no other channels; for them we use:

* pairs at the back, at the sides and above: the weights of Ls and Rs. The middle channel of such a row: those of the
  single rear channel;
* pairs in front and below: the weights of L and R;
* ambisonics: channel 0 only (the omnidirectional component).

The weights may add up to more than 1, so the caller must handle sums beyond full scale (`sound.read_sound` does).
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


# Each channel's weights in L' and R'.
STEREO_PARTS: dict[str, tuple[float, float]] = {
    "FC": (_HALF_POWER, _HALF_POWER),
    **_sides(_FRONT_PAIRS, 1.0),
    **_sides(_SURROUND_PAIRS, _HALF_POWER),
    **dict.fromkeys(("BC", "TC", "TFC", "TBC", "BFC"), (0.5, 0.5)),
    **dict.fromkeys(("LFE", "LFE2"), (0.0, 0.0)),
}


def mono_weights(channels: Sequence[str]) -> np.ndarray:
    """Weights float64 [c] of the channels in their mono mix. channels: FFmpeg's names, such as "FL", "LFE", "AMBI0".

    A single channel has weight 1, whatever its name; two unknown ones 0.5 each. Raises MovaError, without a file's
    name, for more than two channels of which some are unknown, and for layouts of LFE channels only.
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
    """Indices (left, right) of each stereo pair among the channels; (0, 1) for two channels with unknown names."""
    if len(channels) == 2 and not set(channels) & set(STEREO_PARTS):
        return [(0, 1)]
    known = [pair for pair in (*_FRONT_PAIRS, *_SURROUND_PAIRS) if set(pair) <= set(channels)]
    return [(channels.index(left), channels.index(right)) for left, right in known]
