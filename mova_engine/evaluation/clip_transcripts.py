"""What is said in a folder's clips and what was heard there: from lists of transcripts, by file or by id."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mova_engine.data.metadata import FILES
from mova_engine.data.text import flaw, lines_of, read_text, shown
from mova_engine.errors import MovaError

KEYS = ("clip", "id", "video_path")
TRANSCRIPT = "transcript"


@dataclass(frozen=True)
class SpokenText:
    """said: what should be said in a clip, "" where it is not known; heard: what a recogniser gave, None without."""

    said: str = ""
    heard: str | None = None


def read_transcripts(path: Path) -> dict[str, str]:
    """{clip or id: transcript} of a file of JSON lines {"clip": "folder/0001.mp4", "transcript": "[S01] words"}.

    "id" takes the place of "clip" where clips are named by ids. Raises MovaError, with the line, for what is no such
    row, and for a clip that is named twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(lines_of(read_text(path)), 1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise MovaError(f"{place}: is no JSON: {error}") from None
        name, text = _named(row), row.get(TRANSCRIPT) if isinstance(row, Mapping) else None
        if name is None or not isinstance(text, str):
            raise MovaError(f'{place}: must be {{"clip": "...", "{TRANSCRIPT}": "..."}}')
        if flaw(text):
            raise MovaError(f"{place}: the transcript {flaw(text)}")
        if name in found:
            raise MovaError(f"{place}: {shown(name)} has a transcript already")
        found[name] = text
    if not found:
        raise MovaError(f"{path}: holds no transcript")
    return found


def recognisers_of(path: Path) -> str:
    """What the transcripts of a file come from, by the key "recogniser" of its rows; "not stated" where none has it."""
    rows = [json.loads(line) for line in lines_of(read_text(path)) if line.strip()]
    return ", ".join(sorted({str(row["recogniser"]) for row in rows if row.get("recogniser")})) or "not stated"


def said_in(folder: Path, files: Iterable[Path]) -> dict[Path, str]:
    """{file: what should be said} from the key "transcript" of the rows of a folder's metadata file."""
    listing = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if listing is None:
        return {}
    text = read_text(listing)
    try:
        rows = json.loads(text) if listing.suffix == ".json" else [json.loads(x) for x in lines_of(text) if x.strip()]
    except ValueError as error:
        raise MovaError(f"{listing}: is no JSON: {error}") from None
    stated: dict[Path, str] = {}
    for row in rows:
        if isinstance(row, Mapping) and isinstance(row.get("video_path"), str) and isinstance(row.get(TRANSCRIPT), str):
            stated[(folder / row["video_path"]).resolve()] = row[TRANSCRIPT]
    return {path: stated[path.resolve()] for path in files if path.resolve() in stated}


def heard_in(transcripts: Mapping[str, str], names: Mapping[Path, Iterable[str]]) -> dict[Path, str]:
    """{file: what was heard}. names: what each file may be called in the list: its path in the folder, its id.

    Raises MovaError where the list names none of the files.
    """
    found: dict[Path, str] = {}
    for path, called in names.items():
        every = [each for name in called for each in (name, PurePosixPath(name).with_suffix("").as_posix())]
        for name in every:
            if name in transcripts:
                found[path] = transcripts[name]
                break
    if not found:
        raise MovaError(f"the transcripts name none of the clips, but {', '.join(map(shown, list(transcripts)[:3]))}")
    return found


def _named(row: Any) -> str | None:
    names = [row[key] for key in KEYS if isinstance(row.get(key), str) and row[key]] if isinstance(row, Mapping) else []
    return names[0] if names else None
