"""Which clips are compared: a folder of systems' folders, several folders, or a list of files.

    PAIRS/SYSTEM/PROMPT.mp4      prompts' texts in PAIRS/metadata.jsonl, PAIRS/prompts.txt or PAIRS/SYSTEM/PROMPT.txt
    --system mine=FOLDER         the same, each system's folder by itself
    PAIRS.csv (.json, .jsonl)    rows with system, id, path and, where there is one, prompt

A clip's prompt is its file's name without the suffix. Texts come from lines {"id" or "video_path", "caption" or
"prompt"} of metadata.jsonl, from lines "id<TAB>text" of prompts.txt, or from a text file beside the clip.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.data.metadata import MEDIA
from mova_engine.data.text import flaw, lines_of, read_text, shown
from mova_engine.errors import MovaError

_TEXTS = ("metadata.jsonl", "metadata.json", "prompts.jsonl", "prompts.json", "prompts.txt")
_LISTS = (".json", ".jsonl", ".csv")
_LONGEST_NAME = 120


@dataclass(frozen=True)
class StudyClips:
    """systems: their names. prompts: {id: text, "" where none is known}, those that at least two systems have a clip
    of. files: {(system, prompt): the clip's file}. lonely: prompts left out for want of a second clip. missing:
    {system: how many of the prompts it has no clip of}.
    """

    systems: tuple[str, ...]
    prompts: dict[str, str]
    files: dict[tuple[str, str], Path]
    lonely: tuple[str, ...]
    missing: dict[str, int]


def read_study(pairs: Path | None, systems: Sequence[str] = (), prompts: Path | None = None) -> StudyClips:
    """Find the clips. systems: "name=FOLDER" each, in place of `pairs` or beside it. prompts: a file of texts.

    No clip is opened. Raises MovaError, naming the file, for what is not there or cannot be read, for a name or prompt
    that comes twice, and where fewer than two systems have clips of a common prompt.
    """
    files: dict[tuple[str, str], Path] = {}
    texts: dict[str, str] = {}
    if pairs is None and not systems:
        raise MovaError("name a folder or list of clips, or two systems: --system mine=FOLDER other=FOLDER")
    if pairs is not None:
        (_read_list if pairs.is_file() else _read_folder)(pairs, files, texts)
    for given in systems:
        name, equals, folder = given.partition("=")
        if not (name and equals and folder):
            raise MovaError(f"--system takes name=FOLDER, got '{shown(given)}'")
        if name in {system for system, _ in files}:
            raise MovaError(f"system '{shown(name)}' is given twice")
        _read_system(name, Path(folder), files, texts)
    if prompts is not None:
        texts |= dict(_texts_of(prompts))
    return _study(files, texts, pairs)


def _study(files: dict[tuple[str, str], Path], texts: Mapping[str, str], pairs: Path | None) -> StudyClips:
    names = tuple(dict.fromkeys(system for system, _ in files))
    for name in (*names, *(prompt for _, prompt in files)):
        if reason := flaw(name, name=True) or ("is too long" if len(name) > _LONGEST_NAME else None):
            raise MovaError(f"the name '{shown(name)}' {reason}")
    count = Counter(prompt for _, prompt in files)
    kept = sorted(prompt for prompt, number in count.items() if number > 1)
    if len(names) < 2 or not kept:
        where = f"{pairs}: " if pairs is not None else ""
        found = f"{len(names)} with clips found" if len(names) < 2 else "no prompt has clips of two of them"
        raise MovaError(f"{where}a study compares clips of at least two systems: {found}")
    return StudyClips(
        names,
        {prompt: texts.get(prompt, "").strip() for prompt in kept},
        {key: path for key, path in files.items() if count[key[1]] > 1},
        tuple(sorted(prompt for prompt, number in count.items() if number == 1)),
        {name: sum((name, prompt) not in files for prompt in kept) for name in names},
    )


def _read_folder(folder: Path, files: dict[tuple[str, str], Path], texts: dict[str, str]) -> None:
    if not folder.is_dir():
        raise MovaError(f"{folder}: no such folder or list of clips")
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name[0] != "." and any(map(_is_clip, path.iterdir())):
            _read_system(path.name, path, files, texts)
    texts |= _texts_in(folder)


def _read_system(name: str, folder: Path, files: dict[tuple[str, str], Path], texts: dict[str, str]) -> None:
    if not folder.is_dir():
        raise MovaError(f"{folder}: no such folder of clips of '{shown(name)}'")
    clips = [path for path in sorted(folder.iterdir()) if _is_clip(path)]
    if not clips:
        raise MovaError(f"{folder}: has no clips of '{shown(name)}'")
    for path in clips:
        _add(files, name, path.stem, path)
        beside = path.with_suffix(".txt")
        if beside.is_file():
            texts.setdefault(path.stem, read_text(beside).strip())
    for prompt, text in _texts_in(folder).items():
        texts.setdefault(prompt, text)


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in MEDIA and path.name[0] != "." and path.is_file()


def _add(files: dict[tuple[str, str], Path], system: str, prompt: str, path: Path) -> None:
    if (other := files.get((system, prompt))) is not None:
        raise MovaError(f"{path} and {other} are both the clip of '{shown(system)}' for '{shown(prompt)}'")
    files[system, prompt] = path


def _texts_in(folder: Path) -> dict[str, str]:
    return {key: text for name in _TEXTS if (folder / name).is_file() for key, text in _texts_of(folder / name)}


def _texts_of(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of a prompt's id and its text."""
    if path.suffix == ".txt":
        for number, line in enumerate(lines_of(read_text(path)), 1):
            key, tab, text = line.partition("\t")
            if line.strip() and not tab:
                raise MovaError(f"{path}: line {number}: must be the prompt's id, a tab, and its text")
            if tab:
                yield key.strip(), text.strip()
        return
    for place, row in _rows(path):
        key, text = row.get("id") or row.get("video_path"), row.get("caption", row.get("prompt"))
        if not isinstance(key, str) or not isinstance(text, str):
            raise MovaError(f"{place}: must have 'id' (or 'video_path') and 'caption' (or 'prompt'), both text")
        yield (key if "id" in row else Path(key).stem), text


def _read_list(path: Path, files: dict[tuple[str, str], Path], texts: dict[str, str]) -> None:
    if path.suffix.lower() not in _LISTS:
        raise MovaError(f"{path}: must be a folder, or a list of clips ({', '.join(_LISTS)})")
    for place, row in _rows(path):
        found: dict[str, str] = {}
        for wanted, names in {"system": ("system",), "id": ("id",), "path": ("path", "video_path")}.items():
            value = next((row[name] for name in names if name in row), None)
            if not isinstance(value, str) or not value:
                raise MovaError(f"{place}: '{wanted}' is missing or is no text; a row has system, id, path, prompt")
            found[wanted] = value
        clip = path.parent / found["path"]
        if not clip.is_file():
            raise MovaError(f"{place}: {clip}: no such file")
        _add(files, found["system"], found["id"], clip)
        if isinstance(text := row.get("prompt", row.get("caption")), str) and text:
            texts[found["id"]] = text


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a list, each with the place that an error names."""
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        try:
            table = csv.DictReader(io.StringIO(text), strict=True)
            for row in table:
                yield f"{path}: line {table.line_num}", {key: value for key, value in row.items() if key}
        except csv.Error as error:
            raise MovaError(f"{path}: no CSV ({error})") from None
        return
    lines = path.suffix.lower() == ".jsonl"
    parts = [(f"{path}: line {n}", line) for n, line in enumerate(lines_of(text), 1) if line.strip()]
    for place, part in parts if lines else [(str(path), text)]:
        try:
            value = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise MovaError(f"{place}: no JSON ({error})") from None
        for number, row in enumerate([value] if lines else value if isinstance(value, list) else [value], 1):
            at = place if lines else f"{place}: item {number}"
            if not isinstance(row, dict):
                raise MovaError(f"{at}: must be an object, got {type(row).__name__}")
            yield at, row
