"""`mova eval vote fit`: what the votes of a store say of the systems."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mova_engine.config.command import Command
from mova_engine.config.limits import check, check_least, check_seed
from mova_engine.errors import MovaError, run_cli

ABOUT = """Place systems on a scale by their votes, which `mova eval vote serve` collected.

Bradley and Terry's model by maximum likelihood, on the Elo scale, with 95 % intervals; win rates; what side, loudness
and length did; raters who failed attention checks, with and without them; and which pair to ask next.
--out FOLDER: a page (votes.html) and all figures (votes.json).
"""


@dataclass(frozen=True, kw_only=True)
class VoteFitConfig:
    """Which votes are fitted, and how."""

    store: Path
    """SQLite file of the votes."""
    out: Path | None = None
    """Folder for votes.json and votes.html."""
    question: tuple[str, ...] = ()
    """Names of questions; default: all of the study."""
    systems: tuple[str, ...] = ()
    """Only votes between these systems; default: all."""
    anchor: str | None = None
    """A system whose Elo is given, as NAME=1000; default: the mean of all is 1000."""
    intervals: Literal["clustered", "bootstrap", "sandwich", "information"] = "clustered"
    """Intervals by which ranks and decisions are told; the others are printed beside."""
    adjust: tuple[Literal["position", "loudness", "length"], ...] = ()
    """Covariates that are held equal in the table; what each does is told anyway."""
    prior: float | None = None
    """Standard deviation in Elo of a Gaussian prior on strengths; default: none, but 400 for separable votes."""
    without_flagged: bool = False
    """Leave out the votes of raters who failed attention checks; both ways are printed."""
    planned: int = 1000
    """Votes that the study was planned for: the rule of stopping is sharpest there."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        check_least(self, "", planned=1)
        check(self.prior is None or 1 <= self.prior <= 10_000, f"prior must lie between 1 and 10000, got {self.prior}")
        check_seed(self.seed)


VOTE_FIT = Command("mova eval vote fit", VoteFitConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print, and write the report where one is asked for."""
    config = VOTE_FIT.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.evaluation.votes.rater_checks import summarise_raters
    from mova_engine.evaluation.votes.vote_analysis import (
        AnalysisSettings,
        Anchor,
        analyse,
        analyse_if_possible,
        read_votes,
    )
    from mova_engine.evaluation.votes.vote_report import VoteReport, check_report_folder, report_lines, write_report
    from mova_engine.evaluation.votes.vote_store import VoteStore

    anchor = None
    if config.anchor is not None:
        name, _, value = config.anchor.rpartition("=")
        try:
            anchor = Anchor(name, float(value))
        except ValueError:
            name = ""
        check(bool(name), f"--anchor takes NAME=ELO, as mine=1000, got '{config.anchor}'")
    if config.out is not None:
        check_report_folder(config.out)
    settings = AnalysisSettings(
        kind=config.intervals,
        prior=config.prior,
        anchor=anchor,
        adjust=config.adjust,
        systems=config.systems,
        planned=config.planned,
        seed=config.seed,
    )
    store = VoteStore.open(config.store)
    questions: dict[str, str] = dict(store.fact("questions"))
    for name in config.question:
        if name not in questions:
            raise MovaError(f"the study did not ask '{name}'. It asked: {', '.join(questions)}")
    chosen = config.question or tuple(questions)
    votes = read_votes(store)
    raters = summarise_raters(votes)
    flagged = {rater.rater for rater in raters if rater.flag}
    kept = [vote for vote in votes if vote.rater not in flagged]
    first, second = (kept, votes) if config.without_flagged else (votes, kept)
    report = VoteReport(
        questions,
        {name: analyse(first, name, settings) for name in chosen},
        {name: found for name in chosen if flagged and (found := analyse_if_possible(second, name, settings))},
        raters,
        not config.without_flagged,
    )
    sys.stdout.writelines(f"{line}\n" for line in report_lines(report))
    if config.out is not None:
        write_report(config.out, report)
        sys.stdout.write(f"report: {config.out / 'votes.html'}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
