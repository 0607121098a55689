"""`mova eval CLIPS`: measures a folder of clips and reports what was found."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.config.limits import check, check_least
from mova_engine.config.measuring import MeasuringOptions
from mova_engine.errors import counted, require_package, run_cli, say

ABOUT = """Measure every clip of a folder.

Writes a table (scores.parquet), a summary (report.json) and a page (report.html) that opens without a server. Each
clip is decoded once for all scores. What was measured is kept by content: an interrupted run goes on where it was.
`mova eval compare FIRST SECOND` compares two such folders; `mova eval scores` measures single files.
"""


@dataclass(frozen=True)
class _Clips:
    clips: Path
    """Folder of media files; those in folders within it count too."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(MeasuringOptions, _Clips):
    """Which clips are measured, by what, and where the report goes."""

    out: Path
    """Folder of the report, new or of an earlier evaluation."""
    score: tuple[str, ...] = ()
    """Names of scores, or all; default: all but slow ones, if their weights are there."""
    reference: Path | None = None
    """Folder of real clips that the whole set is compared with: FD, KL, KID."""
    bench: str | None = None
    """Whose clips these are: verse, mybench, audio, or a folder with a metadata.jsonl of one's own bench."""
    bench_data: Path | None = None
    """The published files of the bench verse, mybench or audio: their folder, or the list of clips in it."""
    transcripts: Path | None = None
    """What was heard in the clips: JSON lines with "clip" or "id", and "transcript"; see mova eval transcribe."""
    workers: int = max(1, (os.cpu_count() or 2) // 2)
    """Clips measured at the same time."""

    def __post_init__(self) -> None:
        check_least(self, "", workers=1)
        check(self.bench is None or self.reference is None, "a bench names its own recordings: leave out --reference")
        check(self.bench is not None or self.bench_data is None, "--bench-data is for --bench: give it too")


EVALUATE = Command("mova eval", EvaluateConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a folder as the command line says."""
    config = EVALUATE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.evaluation.benches.bench_formats import read_bench
    from mova_engine.evaluation.benches.bench_words import told_bench
    from mova_engine.evaluation.clip_transcripts import read_transcripts, recognisers_of
    from mova_engine.evaluation.evaluation_run import PAGE, check_out, digests_of, evaluate
    from mova_engine.scores.opened_runner import open_runner, share_threads, told_skipped
    from mova_engine.scores.score_file import chosen_scores

    require_package("pyarrow", "mova eval")
    digests = digests_of(config.out)
    runner = open_runner(config, digests.of)
    if config.transcripts is not None:
        runner.transcripts = read_transcripts(config.transcripts)
        runner.recogniser = recognisers_of(config.transcripts)
    scores, skipped = chosen_scores(config.score, runner)
    bench = None if config.bench is None else read_bench(config.bench, config.bench_data)
    if bench is not None and bench.numbers and not config.score:
        wanted = {number.score for number in bench.numbers}
        scores = tuple(score for score in scores if score.name in wanted)
        skipped = {name: reason for name, reason in skipped.items() if name in wanted}
        check(bool(scores), f"none of the scores of {bench.name} can be measured: {'; '.join(skipped.values())}")
    check_out(config.out)
    share_threads(config.workers)
    result = evaluate(
        config.clips,
        config.out,
        scores,
        config.workers,
        say,
        runner=runner,
        reference=config.reference,
        skipped=skipped,
        named=bool(config.score),
        digests=digests,
        bench=bench,
    )
    if result.bench is not None:
        for line in told_bench(result.bench):
            say(line)
    for summary in result.summaries if result.bench is None else []:
        mean = "none" if summary.mean is None else f"{summary.mean:.4g}"
        chance = "" if summary.chance is None else f", chance {summary.chance:.4g}"
        say(f"{summary.column:18} {mean}{_told(summary.interval)}{chance} ({summary.scored} of {summary.asked} clips)")
    for each in result.sets:
        found = each.reason if each.value is None else f"{each.value:.4g}{_told(each.interval)}"
        against = "" if each.reference is None else f" against {each.reference}"
        note = f"; {each.note}" if each.note else ""
        say(f"{each.name:18} {found} ({each.clips} of {counted(each.asked, 'clip')}{against}{note})")
    for line in told_skipped(result.skipped, config.weights):
        say(line)
    say(f"report: {config.out / PAGE}")
    return 0


def _told(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else " [{:.4g}, {:.4g}]".format(*interval)


if __name__ == "__main__":
    run_cli(main)
