"""What raters are shown and what they answer: the rules of a study, over a store."""

import hashlib
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mova_engine.errors import MovaError
from mova_engine.evaluation.votes.cast_votes import Floats
from mova_engine.evaluation.votes.pair_choice import choose_pair
from mova_engine.evaluation.votes.vote_store import VoteStore

ANSWERS = ("left", "right", "tie", "bad")
# Questions that have a name of their own; others are given with their text.
QUESTIONS = {
    "overall": "Which clip is better overall?",
    "picture": "Which has the better pictures?",
    "sound": "Which has the better sound?",
    "sync": "In which do sound and pictures fit together better?",
}
# A vote may come this much earlier than both clips last, in seconds: clocks, and the first picture of a paused player.
_SLACK = 1.0
_LONGEST_NAME = 64
_PAIR = "select pairs.*, prompts.text from pairs join clips on clips.id = left_clip join prompts on prompts.id = prompt"
# A pair that was shown, and has no vote, counts as being looked at for so many seconds.
_LOOKED_AT = 3600
# The first pairs of a rater are no attention checks.
_FIRST_CHECK = 3


class RefusedError(MovaError):
    """A request that the rules do not allow. status: HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class SessionRules:
    """questions: what is asked of each pair, {name: text}. goal: pairs for a rater. check_share: of attention checks
    among pairs. raters: the names that may vote, None for all. damaged: clips, by number, that have a damaged copy.
    """

    questions: Mapping[str, str]
    seed: int
    goal: int
    check_share: float
    raters: frozenset[str] | None
    damaged: tuple[int, ...]


@dataclass(frozen=True)
class ShownPair:
    """What the page is told. Tokens stand for the pair and its two clips, and are used for nothing else."""

    pair: str
    left: str
    right: str
    prompt: str


@dataclass(frozen=True)
class RaterState:
    """pair: to be voted on, None where `done` says that the goal is reached or `exhausted` that no pair is left."""

    pair: ShownPair | None
    answered: int
    last_vote: str | None
    exhausted: bool


class VoteSession:
    """The rules over a store. clips: {(system, prompt): number in the store}, those that this server has."""

    def __init__(self, store: VoteStore, rules: SessionRules, clips: Mapping[tuple[str, str], int]) -> None:
        self.store, self.rules = store, rules
        self._systems = tuple(dict.fromkeys(system for system, _ in clips))
        self._prompts = tuple(dict.fromkeys(prompt for _, prompt in clips))
        place = {name: n for n, name in enumerate(self._systems)}
        at = {name: n for n, name in enumerate(self._prompts)}
        self._clip = np.full((len(self._systems), len(self._prompts)), -1)
        for (system, prompt), number in clips.items():
            self._clip[place[system], at[prompt]] = number
        self._place = {int(self._clip[s, p]): (s, p) for s, p in np.argwhere(self._clip >= 0)}
        # [k, k, prompts]: whether both have a clip.
        self._both = (self._clip[:, None] >= 0) & (self._clip[None] >= 0) & ~np.eye(len(place), dtype=bool)[..., None]

    def join(self, name: str) -> str:
        """The secret of the rater of this name, who is new or goes on. Raises RefusedError for a name that may not."""
        name = " ".join(name.split())
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise RefusedError(422, f"a name has 1 to {_LONGEST_NAME} characters")
        if self.rules.raters is not None and name not in self.rules.raters:
            raise RefusedError(403, "this name or code is not on the study's list")
        with self.store.writing() as database:
            values = (name, secrets.token_urlsafe(24), time.time())
            database.execute("insert or ignore into raters (name, token, since) values (?, ?, ?)", values)
            return database.execute("select token from raters where name = ?", (name,)).fetchone()["token"]

    def state(self, token: str, beyond_goal: bool = False) -> RaterState:
        """What a rater is to see: the pair that is open, or a new one. Raises RefusedError for an unknown rater."""
        with self.store.writing() as database:
            rater, name = self._rater(database, token)
            answered, last = self._answered(database, rater)
            waiting = database.execute(
                f"{_PAIR} where rater = ? and not exists "
                "(select 1 from votes where pair = pairs.id and withdrawn is null) order by pairs.id",
                (rater,),
            ).fetchall()
            row = next((each for each in waiting if self._is_served(each)), None)
            if row is None and (beyond_goal or answered < self.rules.goal):
                row = self._new_pair(database, rater, name)
                if row is None:
                    return RaterState(None, answered, last, True)
        if row is None:
            return RaterState(None, answered, last, False)
        shown = ShownPair(row["token"], row["left_token"], row["right_token"], row["text"])
        return RaterState(shown, answered, last, False)

    def vote(self, token: str, vote: str, pair: str, answers: Mapping[str, str], seconds: float | None) -> None:
        """Store a vote, for ever, before this returns. A vote of the same id that was stored before is the same vote.

        Raises RefusedError for answers to other questions, a pair that has a vote, or one that came before both clips
        can have been played.
        """
        if set(answers) != set(self.rules.questions) or not set(answers.values()) <= set(ANSWERS):
            raise RefusedError(
                422, f"one of {', '.join(ANSWERS)} is wanted for each of {', '.join(self.rules.questions)}"
            )
        with self.store.writing() as database:
            rater, _ = self._rater(database, token)
            found = database.execute(
                "select pairs.id, served, l.seconds + r.seconds as length from pairs join clips l on l.id = left_clip "
                "join clips r on r.id = right_clip where token = ? and rater = ?",
                (pair, rater),
            ).fetchone()
            if found is None:
                raise RefusedError(404, "no such pair of this rater")
            known = database.execute("select pair, withdrawn from votes where id = ?", (vote,)).fetchone()
            if known is not None:
                if known["pair"] == found["id"] and known["withdrawn"] is None:
                    return
                raise RefusedError(409, "this vote was taken back, or is of another pair")
            taken = "select 1 from votes where pair = ? and withdrawn is null"
            if database.execute(taken, (found["id"],)).fetchone():
                raise RefusedError(409, "this pair has a vote")
            now = time.time()
            if now - found["served"] < found["length"] - _SLACK:
                raise RefusedError(422, "both clips must be played to their end first")
            values = (vote, found["id"], now, seconds)
            database.execute("insert into votes (id, pair, time, seconds) values (?, ?, ?, ?)", values)
            database.executemany("insert into answers values (?, ?, ?)", [(vote, *each) for each in answers.items()])

    def undo(self, token: str, vote: str) -> None:
        """Take back a rater's last vote; its pair is open again. Once is as good as twice. Raises RefusedError for
        another one.
        """
        with self.store.writing() as database:
            rater, _ = self._rater(database, token)
            row = database.execute(
                "select withdrawn from votes join pairs on pairs.id = pair where votes.id = ? and rater = ?",
                (vote, rater),
            ).fetchone()
            if row is None:
                raise RefusedError(404, "no such vote of this rater")
            if row["withdrawn"] is None:
                if self._answered(database, rater)[1] != vote:
                    raise RefusedError(409, "only the last vote can be taken back")
                database.execute("update votes set withdrawn = ? where id = ?", (time.time(), vote))

    def clip(self, token: str) -> tuple[int, bool] | None:
        """The clip that a token stands for, by its number, and whether it is to be the damaged copy."""
        rows = self.store.rows(
            "select * from pairs where left_token = ? or right_token = ?",
            (token, token),
        )
        if not rows:
            return None
        side = "left" if rows[0]["left_token"] == token else "right"
        return rows[0][f"{side}_clip"], rows[0]["damaged"] == side

    def _is_served(self, row: sqlite3.Row) -> bool:
        """Whether this server has both clips; a later one may be started without a system."""
        return row["left_clip"] in self._place and row["right_clip"] in self._place

    @staticmethod
    def _rater(database: sqlite3.Connection, token: str) -> tuple[int, str]:
        row = database.execute("select id, name from raters where token = ?", (token,)).fetchone()
        if row is None:
            raise RefusedError(401, "this page does not know its rater: give the name again")
        return row["id"], row["name"]

    @staticmethod
    def _answered(database: sqlite3.Connection, rater: int) -> tuple[int, str | None]:
        """How many votes of a rater stand, and the last one."""
        rows = database.execute(
            "select votes.id from votes join pairs on pairs.id = pair where rater = ? and withdrawn is null "
            "order by time, votes.rowid",
            (rater,),
        ).fetchall()
        return len(rows), rows[-1]["id"] if rows else None

    def _new_pair(self, database: sqlite3.Connection, rater: int, name: str) -> sqlite3.Row | None:
        count = "select coalesce(max(place), 0) + 1 from pairs where rater = ?"
        place = database.execute(count, (rater,)).fetchone()[0]
        # The same rater, place and seed give the same choice and the same sides, whichever server draws.
        key = hashlib.sha256(f"{self.rules.seed}/{name}/{place}".encode()).digest()
        drawn = np.random.default_rng(int.from_bytes(key, "big"))
        is_check, is_damaged, flip = drawn.random(3) < (self.rules.check_share, 0.5, 0.5)
        kind, damaged = "vote", None
        chosen = None
        if is_check and place >= _FIRST_CHECK:
            kind = "damaged" if is_damaged and self.rules.damaged else "identical"
            pool = self.rules.damaged if kind == "damaged" else tuple(self._place)
            clip = pool[int(drawn.integers(len(pool)))]
            chosen = clip, clip
            damaged = (("right", "left")[int(flip)]) if kind == "damaged" else None
        else:
            chosen = self._choose(database, rater, drawn)
        if chosen is None:
            return None
        left, right = chosen[::-1] if flip else chosen
        tokens = [secrets.token_urlsafe(18) for _ in range(3)]
        made = (tokens[0], rater, place, kind, left, right, damaged, tokens[1], tokens[2], time.time())
        database.execute(
            "insert into pairs (token, rater, place, kind, left_clip, right_clip, damaged, left_token, right_token, "
            "served) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            made,
        )
        return database.execute(f"{_PAIR} where token = ?", (tokens[0],)).fetchone()

    def _choose(self, database: sqlite3.Connection, rater: int, drawn: np.random.Generator) -> tuple[int, int] | None:
        """Two clips of one prompt that the rater has not compared yet."""
        wins, pending = np.zeros((2, len(self._systems), len(self._systems)))
        shown: Counter[tuple[int, int, int]] = Counter()
        own: Counter[int] = Counter()
        unseen, now = self._both.copy(), time.time()
        for row in database.execute(
            "select pairs.rater, left_clip, right_clip, served, answer from pairs "
            "left join votes on votes.pair = pairs.id and withdrawn is null "
            "left join answers on answers.vote = votes.id and question = ? where kind = 'vote'",
            (next(iter(self.rules.questions)),),
        ):
            if not self._is_served(row):
                continue
            (i, prompt), (j, _) = self._place[row["left_clip"]], self._place[row["right_clip"]]
            if row["answer"] is not None or row["served"] > now - _LOOKED_AT:
                _count(wins, pending, i, j, row["answer"])
            shown[min(i, j), max(i, j), prompt] += 1
            if row["rater"] == rater:
                own[prompt] += 1
                unseen[i, j, prompt] = unseen[j, i, prompt] = False
        chosen = choose_pair(wins, pending, np.asarray(unseen.any(2)), drawn)
        if chosen is None:
            return None
        i, j = chosen
        of_prompt: Counter[int] = Counter()
        for (_, _, prompt), number in shown.items():
            of_prompt[prompt] += number
        prompts = np.flatnonzero(unseen[i, j])
        order = drawn.permutation(len(prompts))
        best = min(order, key=lambda n: (shown[i, j, p := int(prompts[n])], own[p], of_prompt[p]))
        prompt = int(prompts[best])
        return int(self._clip[i, prompt]), int(self._clip[j, prompt])


def _count(wins: Floats, pending: Floats, i: int, j: int, answer: str | None) -> None:
    """A pair's part of the tables; i on the left."""
    if answer is None:
        pending[i, j] += 1
        pending[j, i] += 1
    else:
        score = {"left": 1.0, "right": 0.0}.get(answer, 0.5)
        wins[i, j] += score
        wins[j, i] += 1 - score
