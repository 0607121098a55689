"""The clips of a study, checked, and their blind copies on disk.

STORE.clips/<sha256>.json    what decoding a clip showed, by its content
STORE.clips/<key>.mp4        a copy, by the clip's content and how it was copied
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mova_engine.data.text import shown
from mova_engine.errors import MovaError, counted
from mova_engine.evaluation.votes.blind_copies import InspectedClip, blind_mp4, damaged_mp4, inspect_clip
from mova_engine.evaluation.votes.clip_responses import LEAST_FILLING
from mova_engine.evaluation.votes.study_clips import StudyClips
from mova_engine.files.atomic import require_file, write_atomic

Loudness = Literal["asis", "level"]
Copying = Literal["packets", "encode"]
Key = tuple[str, str]
# Clips are made quieter, never louder, down to the quietest of their prompt, but not below this many LUFS.
LEAST_LUFS = -35.0
# Changes with what is found and made, so that what an older version left is not taken for it.
_MAKING = 1
_NAMED = 3


@dataclass(frozen=True)
class CheckedClip:
    """A clip that can be shown: its file, SHA-256, what decoding showed, and its copy's change of level in dB."""

    path: Path
    digest: str
    facts: InspectedClip
    gain_db: float | None = None


class StudyCopies:
    """Checked clips by (system, prompt), and their copies in `folder`."""

    def __init__(self, folder: Path, clips: Mapping[Key, CheckedClip], copying: Copying, seed: int) -> None:
        self.clips = dict(clips)
        self._folder, self._encode, self._seed = folder, copying == "encode", seed
        self._lock = threading.Lock()
        self._longest: dict[str, int] = {}

    def prepare(self, damaged: Iterable[Key], workers: int) -> None:
        """Make all copies, and the damaged ones of these clips, which are encoded."""
        wanted = [(key, False) for key in self.clips] + [(key, True) for key in damaged]
        with ThreadPoolExecutor(workers) as pool:
            paths = list(pool.map(lambda each: self._made(*each), wanted))
        for ((_, prompt), _), path in zip(wanted, paths, strict=True):
            self._longest[prompt] = max(self._longest.get(prompt, 0), path.stat().st_size)

    def copy(self, system: str, prompt: str, damaged: bool = False) -> tuple[Path, int]:
        """The file of a copy, made if it is not there, and the bytes to which it is filled up: the same for every copy
        of a prompt, so that a size tells nothing. Raises MovaError for a clip that changed since it was checked.
        """
        with self._lock:
            path = self._made((system, prompt), damaged)
        return path, max(self._longest.get(prompt, 0), path.stat().st_size) + LEAST_FILLING

    def _made(self, key: Key, damaged: bool) -> Path:
        clip = self.clips[key]
        facts = (_MAKING, clip.digest, self._encode, clip.gain_db, damaged, self._seed if damaged else 0)
        path = self._folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.mp4"
        if not path.exists():
            if file_digest(clip.path) != clip.digest:
                raise MovaError(f"{clip.path}: changed since it was checked; start the server again")
            if damaged:
                made = damaged_mp4(clip.path, clip.gain_db, self._seed)
            else:
                made = blind_mp4(clip.path, self._encode, clip.gain_db)
            write_atomic(path, made)
        return path


def check_clips(
    study: StudyClips, folder: Path | None, loudness: Loudness, copying: Copying, workers: int
) -> dict[Key, CheckedClip]:
    """Decode every clip. folder: of what was found before, by content; None keeps nothing.

    Raises MovaError that names the clips that cannot be shown, with what to do.
    """

    def check(path: Path) -> CheckedClip | str:
        try:
            digest = file_digest(path)
            facts = _known(folder, digest) or inspect_clip(path)
            if folder is not None:
                write_atomic(_record(folder, digest), json.dumps(asdict(facts)).encode(), sync=False)
            if facts.unplayable and copying == "packets":
                return f"{path}: {facts.unplayable}, which browsers do not play: convert it, or give --copies encode"
            return CheckedClip(path, digest, facts)
        except MovaError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(study.files, pool.map(check, study.files.values()), strict=True))
    bad = [each for each in found.values() if isinstance(each, str)]
    if bad:
        more = f" (and {len(bad) - _NAMED} more)" if len(bad) > _NAMED else ""
        raise MovaError(f"{counted(len(bad), 'clip')} of {len(found)} cannot be shown: {'; '.join(bad[:_NAMED])}{more}")
    clips = {key: each for key, each in found.items() if not isinstance(each, str)}
    return clips if loudness == "asis" else _levelled(clips)


def length_warnings(clips: Mapping[Key, CheckedClip], tolerance: float) -> list[str]:
    """A line for each prompt whose clips' lengths differ by more than `tolerance` seconds."""
    by_prompt: dict[str, dict[str, float]] = {}
    for (system, prompt), clip in clips.items():
        by_prompt.setdefault(prompt, {})[system] = clip.facts.seconds
    lines = []
    for prompt, seconds in by_prompt.items():
        short, long = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
        if seconds[long] - seconds[short] > tolerance:
            told = f"{seconds[short]:.2f} s of {shown(short)}, {seconds[long]:.2f} s of {shown(long)}"
            lines.append(f"prompt '{shown(prompt)}': the clips' lengths differ: {told}")
    return lines


def file_digest(path: Path) -> str:
    """SHA-256 of a file. MovaError for one that cannot be read."""
    require_file(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MovaError(f"{path}: cannot be read ({error.strerror})") from None


def _levelled(clips: dict[Key, CheckedClip]) -> dict[Key, CheckedClip]:
    """The clips of each prompt brought down to the quietest; those without loudness stay as they are."""
    quietest: dict[str, float] = {}
    for (_, prompt), clip in clips.items():
        if clip.facts.lufs is not None:
            quietest[prompt] = min(quietest.get(prompt, 0.0), max(LEAST_LUFS, clip.facts.lufs))
    return {
        key: CheckedClip(clip.path, clip.digest, clip.facts, min(0.0, quietest[key[1]] - clip.facts.lufs))
        if clip.facts.lufs is not None
        else CheckedClip(clip.path, clip.digest, clip.facts, 0.0)
        for key, clip in clips.items()
    }


def _record(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.{_MAKING}.json"


def _known(folder: Path | None, digest: str) -> InspectedClip | None:
    try:
        return None if folder is None else InspectedClip(**json.loads(_record(folder, digest).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
