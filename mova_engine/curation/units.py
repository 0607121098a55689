"""What curation passes from step to step: source files, the units that one worker decodes at once, and clips of them.

Plain data, without media and without what differs from run to run: equal sources and settings give equal values.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from mova_engine.data.clip_edit import Crop

# Whether somebody speaks in a clip, and whether it holds a cut. The paper keeps the first two.
ClipKind = Literal["speech-shot", "speech-cuts", "other-shot", "other-cuts"]
KINDS: tuple[ClipKind, ...] = ("speech-shot", "speech-cuts", "other-shot", "other-cuts")
# Letters of identities: 96 bits of SHA-256.
_LETTERS = 24


@dataclass(frozen=True)
class SourceFile:
    """A file that clips are cut from.

    name: unique in the run and the same on every machine, "SOURCE/PATH". source: the name of the folder or published
    list that it came with. caption: what that says of it. span: the seconds of the file that the list means, None for
    all of it. facts: what else the list says, by its own keys.
    """

    path: Path
    name: str
    source: str
    caption: str = ""
    span: tuple[float, float] | None = None
    facts: Mapping[str, str | float | int | bool] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Unit:
    """The part of a file that one worker decodes in one go: [start, end) seconds after its first picture; end None is
    the file's end. digest: SHA-256 of the file.
    """

    file: SourceFile
    digest: str
    start: float = 0.0
    end: float | None = None

    @property
    def key(self) -> str:
        """The unit's identity: its content and its place, whatever the file is called."""
        return _identity([self.digest, self.start, self.end])

    @property
    def name(self) -> str:
        """As people read it: "films/a.mp4@600"."""
        return f"{self.file.name}@{self.start:g}"


@dataclass(frozen=True)
class ClipWindow:
    """A clip that is not written yet: `frames` pictures at `fps` from `start` on, seconds after the file's first
    picture in whole microseconds, which is a manifest's `start`.

    crop: of the upright pictures; None: all of them. pad: width and height to which what is left is to be widened by
    black when the clip is written; None: it has its shape. shots: how many it shows. cuts, speech: seconds from the
    clip's start on.
    """

    start: Fraction
    frames: int
    fps: float
    kind: ClipKind
    crop: Crop | None = None
    shots: int = 1
    cuts: tuple[float, ...] = ()
    speech: tuple[tuple[float, float], ...] = ()
    pad: tuple[int, int] | None = None

    @property
    def seconds(self) -> float:
        """The clip's length."""
        return self.frames / self.fps

    def id(self, digest: str) -> str:
        """The clip's identity in the file of this digest: 24 hexadecimal digits."""
        return _identity([digest, str(self.start), self.frames, self.fps, self.crop])

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {**asdict(self), "start": str(self.start)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ClipWindow":
        """A clip as `as_json` wrote it, also after it was JSON."""
        given = dict(value)
        crop, pad = given["crop"], given["pad"]
        return cls(
            **{
                **given,
                "start": Fraction(given["start"]),
                "crop": None if crop is None else tuple(crop),
                "pad": None if pad is None else tuple(pad),
                "cuts": tuple(given["cuts"]),
                "speech": tuple((start, end) for start, end in given["speech"]),
            }
        )


@dataclass(frozen=True)
class UnitCut:
    """What one pass over a unit finds. facts: of the file and the unit. clips: in the order of their starts. signals:
    {column: number} of each clip, from the pictures and samples of the same pass; a number that is missing is left out.
    """

    facts: Mapping[str, Any]
    clips: tuple[ClipWindow, ...]
    signals: tuple[Mapping[str, float], ...]


def _identity(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_LETTERS]
