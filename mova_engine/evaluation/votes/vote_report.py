"""What was found of votes, as lines for a terminal and as two files: votes.json and votes.html."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.errors import MovaError, counted
from mova_engine.evaluation.votes.rater_checks import RaterSummary
from mova_engine.evaluation.votes.strength_intervals import shown_kinds
from mova_engine.evaluation.votes.vote_analysis import QuestionResult
from mova_engine.evaluation.votes.vote_report_page import report_page
from mova_engine.files.atomic import write_atomic
from mova_engine.files.results import check_result, write_result

FIGURES, PAGE = "votes.json", "votes.html"


@dataclass(frozen=True)
class VoteReport:
    """results: {question: of the votes that count}. others: {question: with flagged raters if those do not count,
    without them if they do}; empty where nobody is flagged. counted_flagged: whether flagged raters' votes are in
    `results`.
    """

    questions: Mapping[str, str]
    results: Mapping[str, QuestionResult]
    others: Mapping[str, QuestionResult]
    raters: Sequence[RaterSummary]
    counted_flagged: bool


def check_report_folder(out: Path) -> None:
    """MovaError where the report cannot be written to `out`, or something else has its names."""
    check_result(out / FIGURES, "--out")
    if os.path.lexists(out / PAGE) and not (out / FIGURES).exists():
        raise MovaError(f"{out / PAGE} was not written by this command; give another --out")


def write_report(out: Path, report: VoteReport) -> None:
    """Write both files, the figures last: where they are, the page is theirs."""
    check_report_folder(out)
    write_atomic(out / PAGE, report_page(report.questions, report.results, report.others, report.raters).encode())
    write_result(
        out / FIGURES,
        "votes",
        circumstances(get_backend("cpu")),
        option="--out",
        questions=dict(report.questions),
        counted_flagged=report.counted_flagged,
        results={name: asdict(result) for name, result in report.results.items()},
        others={name: asdict(result) for name, result in report.others.items()},
        raters=[asdict(rater) for rater in report.raters],
    )


def report_lines(report: VoteReport) -> list[str]:
    """The report for a terminal."""
    lines: list[str] = []
    for name, result in report.results.items():
        lines += [f"{name}: {report.questions[name]}", *_question(result)]
        if (other := report.others.get(name)) is not None:
            with_or_without = "without flagged raters" if report.counted_flagged else "with flagged raters too"
            elos = ", ".join(
                f"{row.system} {row.elo:.0f} {_interval(row.intervals[other.kind])}" for row in other.systems
            )
            lines.append(f"  {with_or_without} ({counted(other.votes, 'vote')}): {elos}")
        lines.append("")
    flagged = [rater for rater in report.raters if rater.flag]
    failed, checks = sum(rater.failed for rater in report.raters), sum(rater.checks for rater in report.raters)
    lines.append(
        f"attention checks: {failed} of {checks} failed; {len(flagged)} of {len(report.raters)} raters flagged"
    )
    lines += [f"  {rater.rater}: {rater.flag}" for rater in flagged]
    return lines


def _question(result: QuestionResult) -> list[str]:
    of = f"of {counted(result.raters, 'rater')} on {counted(result.prompts, 'prompt')}"
    lines = [f"  {counted(result.votes, 'vote')} ({result.ties} ties, {result.bad} both bad) {of}"]
    lines += [f"  note: {note}" for note in result.notes]
    kinds = shown_kinds(result.kind)
    head = [f"{kind} 95 %" for kind in kinds]
    overall = {rate.first: rate for rate in result.rates if rate.second is None}
    table = [["system", "Elo", *head, "rank", "won (Wilson 95 %)"]]
    for row in result.systems:
        rate = overall[row.system]
        rank = "-".join(map(str, dict.fromkeys(row.rank)))
        won = f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        intervals = [_interval(row.intervals[kind]) for kind in kinds]
        table.append([row.system, f"{row.elo:.1f}", *intervals, rank, won])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        lines.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for pair in result.neighbours:
        if pair.decided:
            more = "decided, however often it was looked at"
        elif pair.more is None:
            more = "not to be told apart with ten times as many votes"
        else:
            more = f"about {pair.more} more votes may decide it"
        told = f"{pair.first} over {pair.second}: {pair.difference:+.0f} {_interval(pair.interval)}"
        lines.append(f"  {told}, {more}")
    for effect in result.effects:
        bounds = _interval(effect.interval, "+.1f")
        lines.append(f"  {effect.name} effect: {effect.elo:+.1f} Elo {bounds} {effect.unit}")
    first, second, error = result.next_pairs[0]
    lines.append(
        f"  ask next: {first} with {second} (their difference is known to {error:.0f} Elo, one standard error)"
    )
    return lines


def _interval(bounds: tuple[float, float], form: str = ".0f") -> str:
    return f"[{bounds[0]:{form}}, {bounds[1]:{form}}]"
