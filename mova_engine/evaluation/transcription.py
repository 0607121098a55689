"""What a recogniser hears in a folder of clips: a file of JSON lines, which an interrupted run goes on with."""

import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.data.text import lines_of, read_text, shown
from mova_engine.errors import MovaError, counted
from mova_engine.evaluation.clip_records import find_clips
from mova_engine.files.atomic import clear_stale, write_atomic
from mova_engine.inference.background_threads import in_background
from mova_engine.scores.clip_reader import read_clip
from mova_engine.scores.recognisers import RATE, Recogniser
from mova_engine.scores.weights_folder import file_digest

Row = dict[str, Any]
# Seconds between two versions of the file.
_OFTEN = 2.0


def transcribe_folder(
    clips: Path, out: Path, recogniser: Recogniser, workers: int, say: Callable[[str], None]
) -> list[str]:
    """Write what is heard in each clip of a folder to `out`: lines {"clip", "sha256", "recogniser", "transcript"}.

    Clips that `out` already has from this recogniser, of the same bytes, are not heard again; the file is replaced
    every few seconds, whole. Returns a line for each clip that could not be transcribed.
    """
    files = find_clips(clips)
    clear_stale(out.parent)
    known = _known(out, recogniser.name)
    rows: dict[str, Row] = {}
    todo: list[tuple[Path, str, str]] = []
    failed: list[str] = []
    for path in files:
        name = path.relative_to(clips).as_posix()
        try:
            digest = file_digest(path)
        except MovaError as error:
            failed.append(f"{shown(name)}: {error}")
            continue
        if (name, digest) in known:
            rows[name] = known[name, digest]
        else:
            todo.append((path, name, digest))
    if rows:
        say(f"{counted(len(rows), 'clip')} of {len(files)} transcribed before")

    def heard(path: Path) -> str:
        sound = np.asarray(read_clip(path).sound(RATE, sample_format="s16"), np.int16)
        return recogniser.transcribe(sound)

    written = time.monotonic()
    running = [(name, digest, Future[str](), path) for path, name, digest in todo]
    in_background(heard, [(future, path) for _, _, future, path in running], min(workers, len(todo)), "transcribe")
    try:
        for done, (name, digest, future, _) in enumerate(running, 1):
            try:
                text = future.result()
            except MovaError as error:
                failed.append(f"{shown(name)}: {error}")
                continue
            rows[name] = {"clip": name, "sha256": digest, "recogniser": recogniser.name, "transcript": text}
            say(f"[{done}/{len(todo)}] {shown(name)}")
            if time.monotonic() - written > _OFTEN:
                write_atomic(out, _lines(rows))
                written = time.monotonic()
    finally:
        for _, _, future, _ in running:
            future.cancel()
        if rows:
            write_atomic(out, _lines(rows))
    return failed


def _lines(rows: dict[str, Row]) -> bytes:
    return "".join(json.dumps(rows[name], ensure_ascii=False) + "\n" for name in sorted(rows)).encode()


def _known(out: Path, recogniser: str) -> dict[tuple[str, str], Row]:
    """Rows that `out` has from this recogniser. MovaError where the file holds something else."""
    if not out.exists():
        return {}
    found: dict[tuple[str, str], Row] = {}
    try:
        for line in filter(None, lines_of(read_text(out))):
            row = json.loads(line)
            if row["recogniser"] == recogniser:
                found[row["clip"], row["sha256"]] = row
    except (MovaError, ValueError, KeyError, TypeError):
        raise MovaError(f"{out} holds something else than transcripts; it is not replaced") from None
    return found
