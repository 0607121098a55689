"""Channel layouts in FLAC: one for each number of channels, not named in the file (RFC 9639, section 9.1.3)."""

from collections.abc import Sequence

from mova_engine.data.media.downmix import STEREO_PARTS
from mova_engine.errors import MovaError

_FRONT = ("FL", "FR", "FC")
# By FFmpeg's names of layouts and channels, in the order in which FLAC has them.
_LAYOUTS: dict[str, tuple[str, ...]] = {
    "mono": ("FC",),
    "stereo": ("FL", "FR"),
    "3.0": _FRONT,
    "quad": ("FL", "FR", "SL", "SR"),
    "5.0": (*_FRONT, "SL", "SR"),
    "5.1": (*_FRONT, "LFE", "SL", "SR"),
    "6.1": (*_FRONT, "LFE", "BC", "SL", "SR"),
    "7.1": (*_FRONT, "LFE", "BL", "BR", "SL", "SR"),
}
# Two channels that players take for the left and the right one.
_STEREO = {"DL": "FL", "DR": "FR", "BIL": "FL", "BIR": "FR"}
# The one pair of surround channels, which some layouts place at the sides and some at the back.
_SURROUND = {"BL": "SL", "BR": "SR"}


def flac_layout(channels: Sequence[str]) -> tuple[str, list[int]]:
    """The layout that holds the channels in FLAC, by FFmpeg's name, and the index of each of its channels in theirs.

    channels: FFmpeg's names, in the order of the file; one or two may be unknown. Raises MovaError, without a file's
    name, for channels that FLAC would give to other loudspeakers.
    """
    if len(channels) == 1:
        return "mono", [0]
    if len(channels) == 2 and not set(channels) & set(STEREO_PARTS):
        return "stereo", [0, 1]
    names = [_STEREO.get(name, name) for name in channels] if len(channels) == 2 else list(channels)
    if "SL" not in names:
        names = [_SURROUND.get(name, name) for name in names]
    for layout, wanted in _LAYOUTS.items():
        if sorted(wanted) == sorted(names):
            return layout, [names.index(name) for name in wanted]
    raise MovaError(
        f"its sound has the channels {' '.join(channels)}, of which FLAC, which keeps it without loss, would play some "
        "from other loudspeakers: mix it down to stereo first, or convert it to AAC"
    )
