"""Reads the files of benches as their authors publish them, from a file or a folder that the user names.

verse, mybench: one JSON file of {category: {id: {"prompt": text, ...}}}, as `verse_bench_prompts.json` of OpenMOSS/MOVA
is. A clip's own speech, {"speech_prompt": {"text": ...}}, is its transcript; in MyBench the lines of `references.txt`
beside it are, in the order of ids, those of the category "multi-speaker".

audio: one CSV file with a header. The id is in the column `id`, else `audiocap_id`, else `youtube_id`; the caption in
`caption`; the recording's name in `reference`, else `youtube_id`, else the id. Recordings lie in the folder `reference`
beside it, named by that, with or without a "Y" before it (AudioCaps' way).

A folder of one's own: `metadata.jsonl`, one object a line with "id" and, as far as they are known, "caption",
"category", "transcript" and "reference" (a file, relative to the folder).
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mova_engine.data.text import flaw, read_text, shown
from mova_engine.errors import MovaError, counted
from mova_engine.evaluation.benches.bench_items import Bench, BenchItem
from mova_engine.evaluation.benches.clip_matching import match_files
from mova_engine.evaluation.benches.known_benches import MYBENCH_SIZES, NUMBERS, SPEAKERS, VERSE_SIZES
from mova_engine.evaluation.clip_records import SUFFIXES

FOLDER_LIST, TRANSCRIPTS, RECORDINGS = "metadata.jsonl", "references.txt", "reference"
_TAG = re.compile(r"\[S\d+\]")
_CSV_IDS = ("id", "audiocap_id", "youtube_id")
WHOLE = "all"  # the category of a bench without any


def read_bench(name: str, data: Path | None) -> Bench:
    """The bench of that name with the files `data`, or the bench in the folder `name`.

    Raises MovaError for what cannot be read, naming the file and the place in it.
    """
    if name not in NUMBERS:
        if data is not None:
            raise MovaError(f"--bench-data is for the benches {', '.join(NUMBERS)}; the folder {name} holds its own")
        return _checked(_own_folder(Path(name)))
    if data is None:
        raise MovaError(f"--bench {name} needs --bench-data: the folder with the bench's published files")
    return _checked(_FORMATS[name](data))


def _checked(bench: Bench) -> Bench:
    if not bench.items:
        raise MovaError(f"{bench.source}: lists no clips")
    for item in bench.items:
        for text, what in ((item.id, "id"), (item.category, "category")):
            if not text or flaw(text, name=True):
                raise MovaError(f"{bench.source}: {what} '{shown(text)}' cannot be part of a file's name")
    repeated = [key for key, n in Counter((item.category, item.id) for item in bench.items).items() if n > 1]
    if repeated:
        category, name = repeated[0]
        raise MovaError(f"{bench.source}: id '{shown(name)}' is twice in {shown(category)}")
    return bench


def _verse(data: Path) -> Bench:
    source, items = _nested(data)
    return Bench("verse", source, items, NUMBERS["verse"], "categories", _unlike(items, VERSE_SIZES))


def _mybench(data: Path) -> Bench:
    source, items = _nested(data)
    lines = source.with_name(TRANSCRIPTS)
    notes = _unlike(items, MYBENCH_SIZES)
    if not lines.is_file():
        notes = (*notes, f"no {TRANSCRIPTS} beside it: no cpCER")
        return Bench("mybench", source, items, NUMBERS["mybench"], "categories", notes)
    texts = [line.strip() for line in read_text(lines).split("\n") if line.strip()]
    talking = sorted((item for item in items if item.category == SPEAKERS), key=_number_first)
    if len(texts) != len(talking):
        both = f"{counted(len(texts), 'transcript')} for {counted(len(talking), 'clip')}"
        raise MovaError(f"{lines}: {both} of {SPEAKERS} in {source}")
    for number, text in enumerate(texts, 1):
        if not _TAG.search(text):
            raise MovaError(f"{lines}: line {number}: no speaker is tagged, as [S01] would")
    said = {item.id: text for item, text in zip(talking, texts, strict=True)}
    items = tuple(
        BenchItem(item.id, item.category, item.prompt, said[item.id] if item.category == SPEAKERS else "")
        for item in items
    )
    return Bench("mybench", source, items, NUMBERS["mybench"], "categories", notes)


def _number_first(item: BenchItem) -> tuple[int, str]:
    found = re.match(r"\d+", item.id)
    return (int(found[0]) if found else 0, item.id)


def _nested(data: Path) -> tuple[Path, tuple[BenchItem, ...]]:
    source = _one_file(data, ".json")
    try:
        content = json.loads(read_text(source))
    except (ValueError, RecursionError) as error:
        raise MovaError(f"{source}: not valid JSON ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(clips, dict) for clips in content.values()):
        raise MovaError(
            f'{source}: must be an object of categories, each an object of clips: {{"set1": {{"ID": ...}}}}'
        )
    items = []
    for category, clips in content.items():
        for name, about in clips.items():
            if not isinstance(about, dict) or not isinstance(about.get("prompt"), str):
                raise MovaError(f"{source}: {shown(category)}: {shown(name)}: must be an object with a text 'prompt'")
            speech = about.get("speech_prompt")
            text = speech.get("text") if isinstance(speech, dict) else None
            said = f"[S01] {text}" if isinstance(text, str) and text.strip() else ""
            items.append(BenchItem(name, category, about["prompt"], said))
    return source, tuple(items)


def _unlike(items: tuple[BenchItem, ...], published: Mapping[str, int]) -> tuple[str, ...]:
    sizes = Counter(item.category for item in items)
    names = [*published, *(name for name in sizes if name not in published)]
    found = [
        f"{name} {sizes[name]} of {published.get(name, 0)}" for name in names if sizes[name] != published.get(name)
    ]
    return (f"not the published bench: {', '.join(found)} clips",) if found else ()


def _audio(data: Path) -> Bench:
    source = _one_file(data, ".csv")
    reader = csv.DictReader(io.StringIO(read_text(source)), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise MovaError(f"{source}: line {reader.line_num}: not valid CSV ({error})") from None
    header = reader.fieldnames or ()
    id_column = next((name for name in _CSV_IDS if name in header), None)
    if id_column is None or "caption" not in header:
        raise MovaError(
            f"{source}: the header needs 'caption' and one of {', '.join(_CSV_IDS)}; has {', '.join(header)}"
        )
    sound_column = next(name for name in ("reference", "youtube_id", id_column) if name in header)
    recordings = _recordings(source.with_name(RECORDINGS), {row[sound_column] or "" for row in rows})
    items = tuple(
        BenchItem(row[id_column] or "", WHOLE, row["caption"] or "", "", recordings.get(row[sound_column] or ""))
        for row in rows
    )
    lacking = sum(item.reference is None for item in items)
    notes = (f"{counted(lacking, 'clip')} without a recording: no pair for KL",) if lacking else ()
    return Bench("audio", source, items, NUMBERS["audio"], "clips", notes)


def _recordings(folder: Path, names: set[str]) -> dict[str, Path]:
    """The recording of each name that has one."""
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    bare = {Path(path.name): path for path in files}
    wanted = [BenchItem(name, WHOLE) for name in sorted(names) if name]
    found = match_files(bare, wanted)
    by_name = {item.id: bare[places[0]] for item, places in zip(wanted, found.files, strict=True) if places}
    # AudioCaps' downloaders write a "Y" before YouTube's id, which may begin with any sign.
    marked = {Path(path.name[1:]): bare[path] for path in found.extra if path.name.startswith("Y")}
    again = match_files(marked, [item for item in wanted if item.id not in by_name])
    return by_name | {x.id: marked[places[0]] for x, places in zip(again.items, again.files, strict=True) if places}


def _own_folder(folder: Path) -> Bench:
    if not folder.is_dir():
        raise MovaError(f"--bench {folder}: neither a known bench ({', '.join(NUMBERS)}) nor a folder")
    source = folder / FOLDER_LIST
    if not source.is_file():
        raise MovaError(f"--bench {folder}: has no {FOLDER_LIST}")
    items = []
    for number, line in enumerate(read_text(source).split("\n"), 1):
        if line.strip():
            items.append(_listed(folder, f"{source}: line {number}", line))
    return Bench(folder.resolve().name, source, tuple(items))


def _listed(folder: Path, place: str, line: str) -> BenchItem:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MovaError(f"{place}: not valid JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise MovaError(f"{place}: must be an object with a text 'id'")
    texts = {name: row.get(name, default) for name, default in _TEXTS.items()}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise MovaError(f"{place}: '{name}' must be text, is {type(text).__name__}")
    reference = folder / texts["reference"] if texts["reference"] else None
    if reference is not None and not reference.is_file():
        raise MovaError(f"{place}: the reference {reference} is no file")
    return BenchItem(row["id"], texts["category"], texts["caption"], texts["transcript"], reference)


_TEXTS = {"caption": "", "category": WHOLE, "transcript": "", "reference": ""}


def _one_file(data: Path, suffix: str) -> Path:
    """The file itself, or the only one of that kind in a folder."""
    if data.is_file():
        return data
    if not data.is_dir():
        raise MovaError(f"--bench-data {data}: no such file or folder")
    found = sorted(path for path in data.iterdir() if path.suffix.lower() == suffix and path.is_file())
    if len(found) != 1:
        raise MovaError(f"--bench-data {data}: must hold one {suffix} file, has {len(found)}: name the file itself")
    return found[0]


_FORMATS = {"verse": _verse, "mybench": _mybench, "audio": _audio}
