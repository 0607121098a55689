"""A study of votes without clips or a server: a store with raters who answer as they are told."""

from pathlib import Path

from mova_engine.evaluation.votes import vote_session
from mova_engine.evaluation.votes.vote_session import QUESTIONS, SessionRules, VoteSession
from mova_engine.evaluation.votes.vote_store import VoteStore

SECONDS = 5.0


class Clock:
    """Takes the place of the module `time`: a rater looks at a pair for as long as both clips last."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now


class Study:
    """`systems` times `prompts` clips. monkeypatch: pytest's, for the clock."""

    def __init__(self, path: Path, monkeypatch, systems="ABC", prompts=6, questions=("overall",), **rules) -> None:
        self.clock, self.store = Clock(), VoteStore.make(path)
        monkeypatch.setattr(vote_session, "time", self.clock)
        asked = {name: QUESTIONS[name] for name in questions}
        self.store.agree("questions", list(asked.items()))
        names = [f"p{n}" for n in range(prompts)]
        clips = {(s, p): ("0" * 64, SECONDS, -20.0 - n) for n, s in enumerate(systems) for p in names}
        self.numbers = self.store.add_clips(dict.fromkeys(names, "a ball"), clips)
        self.clips = {number: key for key, number in self.numbers.items()}
        settings = {"seed": 0, "goal": 100, "check_share": 0.0, "raters": None, "damaged": (1, 2)} | rules
        self.session = VoteSession(self.store, SessionRules(asked, **settings), self.numbers)
        self.count = 0

    def shown(self, pair: str) -> dict:
        """The store's row of a pair."""
        return dict(self.store.rows("select * from pairs where token = ?", (pair,))[0])

    def systems(self, pair: str) -> tuple[str, str]:
        """Whose the left and the right clip are."""
        row = self.shown(pair)
        return self.clips[row["left_clip"]][0], self.clips[row["right_clip"]][0]

    def vote(self, rater: str, answer) -> str | None:
        """The next pair's vote; answer: a word, or a function of the store's row and the two systems. Returns the
        vote's id, None where no pair is left.
        """
        pair = self.session.state(rater).pair
        if pair is None:
            return None
        self.clock.now += 2 * SECONDS
        given = answer if isinstance(answer, str) else answer(self.shown(pair.pair), *self.systems(pair.pair))
        self.count += 1
        vote = f"vote {self.count}"
        self.session.vote(rater, vote, pair.pair, dict.fromkeys(self.session.rules.questions, given), 9.0)
        return vote
