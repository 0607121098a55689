"""A folder of clips, measured: a table of all numbers, and what the set says of each."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mova_engine.backend.circumstances import circumstances
from mova_engine.errors import MovaError
from mova_engine.evaluation.benches.bench_items import Bench
from mova_engine.evaluation.benches.bench_run import BenchRun
from mova_engine.evaluation.clip_captions import captions_of
from mova_engine.evaluation.clip_records import ClipRecords, find_clips
from mova_engine.evaluation.clip_transcripts import SpokenText, heard_in, said_in
from mova_engine.evaluation.column_summary import ColumnSummary, summarise
from mova_engine.evaluation.evaluation_page import page
from mova_engine.evaluation.evaluation_result import EvaluationResult, Row, ScoreSeconds
from mova_engine.evaluation.measured_clips import MeasuredClips, measure_clips
from mova_engine.evaluation.score_parquet import parquet_bytes
from mova_engine.evaluation.set_summary import chance_levels, set_results
from mova_engine.files.atomic import clear_stale, write_atomic
from mova_engine.files.digests import Digests
from mova_engine.files.results import check_result, write_result
from mova_engine.files.writable import PROBE
from mova_engine.ops import resolve
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.weights_manifest import WEIGHTS

# Files of an evaluation's folder.
REPORT, TABLE, PAGE, RECORDS = "report.json", "scores.parquet", "report.html", "records"


def check_out(out: Path) -> None:
    """MovaError where `out` cannot take an evaluation, or holds something else than one."""
    check_result(out / REPORT, "--out")
    known = (out / REPORT).exists() or (out / RECORDS).is_dir() or not out.is_dir()
    if not known and any(not path.name.startswith(PROBE) for path in out.iterdir()):
        raise MovaError(f"{out} holds something else than an evaluation; give another --out")


def digests_of(out: Path) -> Digests:
    """Files' digests, those of large files kept in an evaluation's folder."""
    return Digests(out / RECORDS / "digests", lambda path, data: write_atomic(path, data, sync=False))


def evaluate(
    clips: Path,
    out: Path,
    scores: Sequence[Score],
    workers: int,
    say: Callable[[str], None],
    *,
    runner: ScoreRunner | None = None,
    reference: Path | None = None,
    skipped: Mapping[str, str] | None = None,
    named: bool = False,
    digests: Digests | None = None,
    bench: Bench | None = None,
) -> EvaluationResult:
    """Measure every clip of a folder, `workers` at a time, and write what was found to `out`.

    Records that are there already are not measured again. A file that cannot be read is a row of reasons. runner: with
    the weights, the device and the convention. reference: a folder of real clips, to which sets are compared. skipped:
    {score: why it is not measured}, told in the report; a score of sound and text joins them where no clip has a
    caption, unless the scores are named. bench: whose clips the files are, by their names; its prompts and recordings
    take the place of captions and reference.

    Raises MovaError, before any clip is read, where this machine or the folder lacks what a score needs.
    """
    runner = runner or ScoreRunner()
    digests = digests or digests_of(out)
    skipped = dict(skipped or {})
    check_out(out)
    clear_stale(out)
    # What a machine lacks must not become a clip's reason: reasons are kept, and not sought again.
    for score in scores:
        if score.check:
            resolve(score.check)()
    records = ClipRecords(out / RECORDS, runner)
    run = None if bench is None else BenchRun(bench, clips, out)
    prompted = [score for score in scores if score.prompt]
    measured = run.listed(records, digests) if run else _listed(clips, out, records, digests, bool(prompted))
    if prompted and not measured.captions:
        reason = "no clip has a caption (metadata.jsonl, or a .txt beside it)"
        if named:
            raise MovaError(f"{prompted[0].name} cannot be measured: {reason}")
        skipped |= {score.name: reason for score in prompted}
        scores = [score for score in scores if not score.prompt]
    if any(score.transcripts for score in scores):
        measured.spoken = _spoken(measured, runner.transcripts, run)
    compared = [score for score in scores if any(number.reference for number in score.set_numbers)]
    real = None
    if run:
        real = run.references(records, digests) if compared else None
    elif reference is not None:
        real = _listed(reference, out, records, digests, captioned=False)
    (run.measure if run else measure_clips)(measured, scores, runner, digests, workers, say)
    if real is not None and compared:
        say(f"the reference, {real.folder}:")
        measure_clips(real, compared, runner, digests, workers, say)
    rows = _rows(measured, scores, run)
    summaries = _summaries(measured, scores, rows, runner)
    result = EvaluationResult(
        rows,
        summaries,
        [] if run else set_results(scores, measured, real, runner),
        _seconds(measured, scores),
        {score.name: runner.facts(score) for score in scores},
        skipped,
        run.result(measured, real, rows, summaries, scores, skipped, runner) if run else None,
    )
    for score in scores:
        if score.transcripts:
            write_atomic(out / f"{score.name}.jsonl", _compared_lines(measured, score))
    _write(out, clips, reference, scores, result, runner, workers)
    return result


def _spoken(clips: MeasuredClips, transcripts: Mapping[str, str], bench: BenchRun | None) -> dict[Path, SpokenText]:
    names = {path: [clips.name(path)] for path in clips.files}
    for path, called in names.items():
        called += [bench.labels(clips, path)["id"]] if bench else []
    said = bench.said(clips) if bench else said_in(clips.folder, clips.files)
    heard = heard_in(transcripts, names)
    return {path: SpokenText(said.get(path, ""), heard.get(path)) for path in clips.files}


def _compared_lines(clips: MeasuredClips, score: Score) -> bytes:
    """A line of JSON for each clip: what is said, what was heard, and what was found of both."""
    rows = []
    for path in clips.files:
        record, spoken = clips.record(path, score), clips.spoken.get(path, SpokenText())
        found = {"clip": clips.name(path), **asdict(spoken), **(record["evidence"] or {}), "why": record["reason"]}
        rows.append(json.dumps(found, ensure_ascii=False) + "\n")
    return "".join(rows).encode()


def _listed(clips: Path, out: Path, records: ClipRecords, digests: Digests, captioned: bool) -> MeasuredClips:
    files = find_clips(clips, leave_out=out)
    captions = captions_of(clips, files) if captioned else {}
    return MeasuredClips.listed(clips, files, captions, records, digests)


def _rows(clips: MeasuredClips, scores: Sequence[Score], bench: BenchRun | None) -> list[Row]:
    rows = []
    for path in clips.files:
        digest = None if path in clips.unreadable else clips.keys[path]
        row: Row = {"clip": clips.name(path), "sha256": digest}
        row |= bench.labels(clips, path) if bench else {}
        for score in scores:
            record = clips.record(path, score)
            row |= {column.name: record["values"].get(column.name) for column in score.columns}
            row[f"why_{score.name}"] = record["reason"]
        rows.append(row)
    return rows


def _summaries(
    clips: MeasuredClips, scores: Sequence[Score], rows: Sequence[Row], runner: ScoreRunner
) -> list[ColumnSummary]:
    found = []
    for score in scores:
        chance = chance_levels(score, clips, runner)
        reasons = [row[f"why_{score.name}"] for row in rows]
        for column in score.columns:
            values = [row[column.name] for row in rows]
            found.append(summarise(column.name, values, reasons, chance.get(column.name)))
    return found


def _seconds(clips: MeasuredClips, scores: Sequence[Score]) -> dict[str, ScoreSeconds]:
    """By score; of decoding, what the last pass over each clip took."""
    once = {clips.keys[path]: path for path in clips.files}.values()
    records = {score.name: [clips.record(path, score) for path in once] for score in scores}
    found = {name: _taken([each["seconds"] for each in of_score]) for name, of_score in records.items()}
    decoded = [max(each["decode_seconds"] for each in of_clip) for of_clip in zip(*records.values(), strict=True)]
    return {"decode": _taken(decoded), **found}


def _taken(seconds: Sequence[float]) -> ScoreSeconds:
    known = [each for each in seconds if each]
    return ScoreSeconds(len(known), sum(known))


def _write(
    out: Path,
    clips: Path,
    reference: Path | None,
    scores: Sequence[Score],
    result: EvaluationResult,
    runner: ScoreRunner,
    workers: int,
) -> None:
    facts = {name: _with_files(about, runner) for name, about in result.facts.items()}
    write_atomic(out / TABLE, parquet_bytes(result.rows, scores, result.facts))
    write_atomic(out / PAGE, page(clips, out, scores, result).encode())
    write_result(
        out / REPORT,
        "evaluation",
        circumstances(runner.backend, processes=workers),
        option="--out",
        clips=str(clips),
        reference=None if reference is None else str(reference),
        convention=runner.asked,
        scores=facts,
        not_measured=result.skipped,
        columns=[asdict(summary) for summary in result.summaries],
        sets=[asdict(each) for each in result.sets],
        seconds={name: {**asdict(taken), "mean": taken.mean} for name, taken in result.seconds.items()},
        bench=None if result.bench is None else result.bench.facts(),
    )


def _with_files(about: dict[str, Any], runner: ScoreRunner) -> dict[str, Any]:
    """A score's facts, its weights with their file, licence and whether they are the published ones."""
    told = {}
    for name, digest in about["weights"].items():
        entry, path = WEIGHTS[name], runner.weights.find(name)
        told[name] = {
            "file": None if path is None else str(path),
            "sha256": digest,
            "published": entry.published(digest),
            "licence": entry.licence,
        }
    return {**about, "weights": told}
