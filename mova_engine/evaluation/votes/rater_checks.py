"""What the attention checks, and the answers as a whole, say of each rater. Nobody is left out for it in silence."""

from collections.abc import Sequence
from dataclasses import dataclass

# A rater whose failed share of checks is above this is flagged, as is one whose votes, so many or more, are all alike.
MOST_FAILED, ALL_ALIKE = 1 / 3, 12


@dataclass(frozen=True)
class CastVote:
    """A vote of the store. kind: vote, identical or damaged; damaged: the side of the damaged copy. left, right:
    systems. lufs, seconds: of both clips, left and right. answers: {question: left, right, tie or bad}. took: seconds,
    or None.
    """

    rater: str
    kind: str
    prompt: str
    left: str
    right: str
    damaged: str | None
    lufs: tuple[float | None, float | None]
    seconds: tuple[float, float]
    answers: dict[str, str]
    took: float | None


@dataclass(frozen=True)
class RaterSummary:
    """votes, checks, failed: their numbers. left, ties, bad: shares of answers. seconds: the median time of a vote.
    flag: why the rater is flagged, "" if not.
    """

    rater: str
    votes: int
    checks: int
    failed: int
    left: float
    ties: float
    bad: float
    seconds: float | None
    flag: str


def is_failed(vote: CastVote) -> bool:
    """Whether an attention check was not passed, by its answers to any question.

    Of identical clips neither is better. A damaged copy is never better, nor as good; "both bad" may be said of it,
    since the whole clip may be bad too.
    """
    wrong = {"left", "right"} if vote.kind == "identical" else {vote.damaged, "tie"}
    return any(answer in wrong for answer in vote.answers.values())


def summarise_raters(votes: Sequence[CastVote]) -> list[RaterSummary]:
    """One for each rater, flagged ones first."""
    by_rater: dict[str, list[CastVote]] = {}
    for vote in votes:
        by_rater.setdefault(vote.rater, []).append(vote)
    found = [_summary(rater, each) for rater, each in by_rater.items()]
    return sorted(found, key=lambda summary: (not summary.flag, summary.rater))


def _summary(rater: str, votes: list[CastVote]) -> RaterSummary:
    checks = [vote for vote in votes if vote.kind != "vote"]
    cast = [vote for vote in votes if vote.kind == "vote"]
    failed = sum(map(is_failed, checks))
    answers = [answer for vote in cast for answer in vote.answers.values()]
    share = {answer: answers.count(answer) / max(1, len(answers)) for answer in ("left", "right", "tie", "bad")}
    took = sorted(vote.took for vote in cast if vote.took is not None)
    flag = ""
    if failed > MOST_FAILED * len(checks):
        flag = f"failed {failed} of {len(checks)} attention checks"
    elif len(cast) >= ALL_ALIKE and max(share.values()) == 1:
        flag = f"all {len(cast)} votes are '{max(share, key=share.__getitem__)}'"
    return RaterSummary(
        rater,
        len(cast),
        len(checks),
        failed,
        share["left"],
        share["tie"],
        share["bad"],
        took[len(took) // 2] if took else None,
        flag,
    )
