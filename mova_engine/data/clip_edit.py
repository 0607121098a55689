"""What is done to a clip's pictures and sound when it is read: a crop, black around it, a shift of the sound, a gain.

    {"video_path": "film.mkv", "caption": "...", "crop": [240, 0, 1440, 1080], "sound_shift": -0.08, "gain_db": 3.5}

`crop` is x, y, width and height of a part of the pictures as they are shown, upright and with square pixels. `pad` is
the width and height to which that is widened by black, in whose middle it lies. `sound_shift` is by how many seconds
the sound is moved, later where it is positive. `gain_db` is by how much it is made louder. In a CSV file `crop` and
`pad` are the same lists as text: "[240, 0, 1440, 1080]".
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mova_engine.data.text import shown
from mova_engine.errors import MovaError

# A rectangle of an upright picture with square pixels: x, y, width, height.
Crop = tuple[int, int, int, int]
EDIT_KEYS = ("crop", "pad", "sound_shift", "gain_db")
# Those whose values are lists of whole numbers.
LIST_KEYS = ("crop", "pad")
# The furthest pixel that a crop may name, and the most that sound is moved (seconds) and made louder or softer (dB).
FURTHEST, LONGEST_SHIFT, LARGEST_GAIN = 1 << 16, 3600.0, 100.0


@dataclass(frozen=True)
class ClipEdit:
    """How a clip differs from what its file holds. crop: None: the whole picture. pad: None: no black around it.
    Raises MovaError for values that cannot be meant.
    """

    crop: Crop | None = None
    sound_shift: float = 0.0
    gain_db: float = 0.0
    pad: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for key, names in (("crop", "[x, y, width, height]"), ("pad", "[width, height]")):
            value = getattr(self, key)
            if value is not None and not _is_box(value, names.count(",") + 1):
                got = shown(json.dumps(value, default=str))
                raise MovaError(f"'{key}' must be {names} in whole pixels, got {got}")
        for key, most, unit in (("sound_shift", LONGEST_SHIFT, "seconds"), ("gain_db", LARGEST_GAIN, "decibels")):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= most:
                got = shown(json.dumps(value, default=str))
                raise MovaError(f"'{key}' must be {unit} from {-most:g} to {most:g}, got {got}")

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return self != NO_EDIT

    def __str__(self) -> str:
        """As caches and fingerprints tell clips apart; equal for equal edits."""
        return json.dumps(self.facts, sort_keys=True)

    @property
    def facts(self) -> dict[str, Any]:
        """What is changed, by the keys of manifests."""
        return {key: value for key, value in asdict(self).items() if value != getattr(NO_EDIT, key)}

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the pictures as the clip has them, of pictures that are shown in this size."""
        return self.pad or ((width, height) if self.crop is None else self.crop[2:])


def edit_of(row: Mapping[str, Any]) -> ClipEdit:
    """What the keys of a manifest's row say; null is a key that is not there. Raises MovaError that begins with the
    key.
    """
    given = {key: row[key] for key in EDIT_KEYS if row.get(key) is not None}
    if not given:
        return NO_EDIT
    for key in LIST_KEYS:
        if key in given:
            given[key] = _numbers(given[key])
    edit = ClipEdit(**given)
    return ClipEdit(edit.crop, float(edit.sound_shift), float(edit.gain_db), edit.pad)


def _numbers(value: Any) -> Any:
    """A list of numbers, or its text, as a tuple; anything else as it is, to be refused."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if not isinstance(value, list | tuple):
        return value
    # Tools that filter tables make whole numbers fractions.
    return tuple(int(x) if isinstance(x, float) and math.isfinite(x) and x.is_integer() else x for x in value)


def _is_box(value: Any, count: int) -> bool:
    """Whether it is `count` whole numbers that name pixels, the last two of them a size."""
    if not isinstance(value, tuple) or len(value) != count or any(type(x) is not int for x in value):
        return False
    return all(0 <= x <= FURTHEST for x in value) and min(value[-2:]) >= 1


NO_EDIT = ClipEdit()
