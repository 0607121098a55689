"""A folder of clips, measured: a table of all numbers, and what the set says of each."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.data.text import shown
from mova_engine.errors import MovaError, counted
from mova_engine.evaluation.clip_records import ClipRecords, find_clips
from mova_engine.evaluation.column_summary import ColumnSummary, EvaluationResult, Row, summarise
from mova_engine.evaluation.evaluation_page import page
from mova_engine.evaluation.score_parquet import parquet_bytes
from mova_engine.files.atomic import write_atomic
from mova_engine.files.digests import Digests
from mova_engine.files.results import check_result, write_result
from mova_engine.ops import resolve
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_file import ClipScores, score_file

# Files of an evaluation's folder.
REPORT, TABLE, PAGE, RECORDS = "report.json", "scores.parquet", "report.html", "records"
_CHANCE_PAIRS = 200


def check_out(out: Path) -> None:
    """MovaError where `out` cannot take an evaluation, or holds something else than one."""
    check_result(out / REPORT, "--out")
    if out.is_dir() and any(out.iterdir()) and not ((out / REPORT).exists() or (out / RECORDS).is_dir()):
        raise MovaError(f"{out} holds something else than an evaluation; give another --out")


def evaluate(
    clips: Path, out: Path, scores: Sequence[Score], workers: int, say: Callable[[str], None]
) -> EvaluationResult:
    """Measure every clip of a folder, `workers` at a time, and write what was found to `out`.

    Records that are there already are not measured again. A file that cannot be read is a row of reasons. Raises
    MovaError, before any clip is read, where this machine lacks what a score needs.
    """
    check_out(out)
    # What a machine lacks must not become a clip's reason: reasons are kept, and not sought again.
    for score in scores:
        if score.check:
            resolve(score.check)()
    files = find_clips(clips, leave_out=out)
    records = ClipRecords(out / RECORDS)
    digests = Digests(out / RECORDS / "digests", lambda path, data: write_atomic(path, data, sync=False))
    keys = {path: digests.of(path) for path in files}
    # Files of the same bytes are measured once.
    first = {digest: path for path, digest in reversed(keys.items())}
    lacking = {digest: records.missing(digest, scores) for digest in first}
    if before := sum(not lacking[digest] for digest in keys.values()):
        say(f"{counted(before, 'clip')} of {len(files)} measured before")
    todo = {path: lacking[digest] for path, digest in keys.items() if lacking[digest] and first[digest] == path}
    if changed := _measure(todo, keys, digests, records, workers, say):
        raise MovaError(
            f"{changed[0]}: changed while it was measured ({counted(len(changed), 'clip')}): run this again"
        )
    rows = [_row(path, clips, keys[path], records, scores) for path in files]
    result = EvaluationResult(
        rows, _summaries(files, keys, records, scores, rows), _seconds(files, keys, records, scores)
    )
    _write(out, clips, scores, result)
    return result


def _measure(
    todo: dict[Path, list[Score]],
    keys: dict[Path, str],
    digests: Digests,
    records: ClipRecords,
    workers: int,
    say: Callable[[str], None],
) -> list[Path]:
    """Measure and keep. Returns the files whose bytes were other ones afterwards: nothing is kept of them."""
    start, done = time.monotonic(), 0
    changed: list[Path] = []
    waiting, running = list(todo), {}
    pool = ThreadPoolExecutor(workers)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                path = waiting.pop(0)
                running[pool.submit(_scored, path, [score.name for score in todo[path]])] = path
            ended: set[Future[ClipScores]]
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                path = running.pop(future)
                scored = future.result()
                if digests.of(path) == keys[path]:
                    records.store(keys[path], todo[path], scored)
                else:
                    changed.append(path)
                done += 1
                left = (time.monotonic() - start) / done * (len(todo) - done)
                say(f"[{done}/{len(todo)}] {shown(path.name)}, {left:.0f} s left")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return changed


def _scored(path: Path, names: list[str]) -> ClipScores:
    """The scores of one file; one that cannot be read gives each score that reason."""
    try:
        return score_file(path, names)
    except MovaError as error:
        # The row names the file: the same reason of several files is one.
        return ClipScores(reasons=dict.fromkeys(names, str(error).removeprefix(f"{path}: ")))


def _row(path: Path, folder: Path, digest: str, records: ClipRecords, scores: Sequence[Score]) -> Row:
    row: Row = {"clip": path.relative_to(folder).as_posix(), "sha256": digest}
    for score in scores:
        record = records.read(digest, score)
        row |= {column.name: record["values"].get(column.name) for column in score.columns}
        row[f"why_{score.name}"] = record["reason"]
    return row


def _summaries(
    files: Sequence[Path], keys: dict[Path, str], records: ClipRecords, scores: Sequence[Score], rows: Sequence[Row]
) -> list[ColumnSummary]:
    found = []
    for score in scores:
        evidence = [records.read(keys[path], score)["evidence"] for path in files]
        chance = _chance(score, [each for each in evidence if each is not None])
        reasons = [row[f"why_{score.name}"] for row in rows]
        for column in score.columns:
            values = [row[column.name] for row in rows]
            found.append(summarise(column.name, values, reasons, chance.get(column.name)))
    return found


def _chance(score: Score, evidence: list[Any]) -> dict[str, float]:
    """The mean of each number over pairs whose sound and pictures come from different clips."""
    if not score.chance or len(evidence) < 2:
        return {}
    drawn = np.random.default_rng(0)
    pairs = [drawn.choice(len(evidence), 2, replace=False) for _ in range(_CHANCE_PAIRS)]
    measure = resolve(score.chance)
    found = [measure(evidence[int(i)], evidence[int(j)]) for i, j in pairs]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def _seconds(
    files: Sequence[Path], keys: dict[Path, str], records: ClipRecords, scores: Sequence[Score]
) -> dict[str, float]:
    """Mean seconds a clip, by score."""
    return {score.name: float(np.mean([records.read(keys[f], score)["seconds"] for f in files])) for score in scores}


def _write(out: Path, clips: Path, scores: Sequence[Score], result: EvaluationResult) -> None:
    write_atomic(out / TABLE, parquet_bytes(result.rows, scores))
    write_atomic(out / PAGE, page(clips, out, scores, result).encode())
    write_result(
        out / REPORT,
        "evaluation",
        circumstances(get_backend("cpu")),
        option="--out",
        clips=str(clips),
        scores={
            score.name: {"version": score.version, "convention": score.convention("corrected")} for score in scores
        },
        columns=[asdict(summary) for summary in result.summaries],
        seconds=result.seconds,
    )
