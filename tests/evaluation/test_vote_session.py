"""The rules of a study: sides, order, idempotence, undo, attention checks, and what a store keeps."""

import json
import sqlite3
from collections import Counter

import pytest
from simulated_study import Study

from mova_engine.commands.vote_fit import main as fit
from mova_engine.errors import MovaError
from mova_engine.evaluation.votes.rater_checks import CastVote, is_failed, summarise_raters
from mova_engine.evaluation.votes.vote_analysis import AnalysisSettings, analyse, read_votes, sequential_factor
from mova_engine.evaluation.votes.vote_session import RefusedError
from mova_engine.evaluation.votes.vote_store import VoteStore


@pytest.fixture
def study(tmp_path, monkeypatch):
    return Study(tmp_path / "votes.sqlite", monkeypatch)


def better(order):
    """Answers by a fixed order of systems, and attention checks rightly."""

    def answer(row, left, right):
        if row["kind"] == "identical":
            return "tie"
        if row["kind"] == "damaged":
            return "right" if row["damaged"] == "left" else "left"
        return "left" if order.index(left) < order.index(right) else "right"

    return answer


def test_a_rater_sees_each_pair_once_all_are_balanced_and_sides_are_drawn(study):
    rater, seen, left = study.session.join("ann"), Counter(), Counter()
    while study.vote(
        rater,
        lambda row, a, b: (seen.update([frozenset((row["left_clip"], row["right_clip"]))]), left.update([a]), "tie")[
            -1
        ],
    ):
        pass
    assert len(seen) == 18 and set(seen.values()) == {1}, "3 pairs of systems on 6 prompts"
    assert all(2 < left[system] < 10 for system in "ABC")
    assert study.session.state(rater).exhausted
    pairs = Counter(frozenset((vote.left, vote.right)) for vote in read_votes(study.store)[:6])
    assert set(pairs.values()) == {2}, "while nothing is known, all pairs are asked alike"


def test_the_same_seed_gives_the_same_pairs_on_the_same_sides(tmp_path, monkeypatch):
    shown = []
    for number, seed in enumerate((3, 3, 4)):
        study = Study(tmp_path / f"{number}.sqlite", monkeypatch, seed=seed, check_share=0.3)
        rater = study.session.join("ann")
        for _ in range(12):
            study.vote(rater, "left")
        rows = study.store.rows("select kind, left_clip, right_clip, damaged from pairs order by id")
        shown.append([tuple(row) for row in rows])
    assert shown[0] == shown[1] != shown[2]


def test_a_vote_counts_once_however_often_it_is_sent(study):
    session, rater = study.session, study.session.join("ann")
    pair = session.state(rater).pair
    assert session.state(rater).pair == pair, "a page that is loaded again shows the same pair"
    study.clock.now += 10
    for _ in range(3):
        session.vote(rater, "same", pair.pair, {"overall": "left"}, 9.0)
    with pytest.raises(RefusedError, match="has a vote") as caught:
        session.vote(rater, "other", pair.pair, {"overall": "right"}, 9.0)
    assert caught.value.status == 409
    assert [vote.answers for vote in read_votes(study.store)] == [{"overall": "left"}]
    assert session.state(rater).answered == 1


def test_undo_opens_the_pair_again_and_deletes_nothing(study):
    session, rater = study.session, study.session.join("ann")
    first, second = study.vote(rater, "left"), study.vote(rater, "left")
    last = study.store.rows("select token from pairs where id = (select pair from votes where id = ?)", (second,))
    with pytest.raises(RefusedError, match="only the last"):
        session.undo(rater, first)
    for _ in range(2):
        session.undo(rater, second)
    state = session.state(rater)
    assert (state.pair.pair, state.answered, state.last_vote) == (last[0]["token"], 1, first)
    with pytest.raises(RefusedError, match="taken back"):
        session.vote(rater, second, state.pair.pair, {"overall": "left"}, 9.0)
    session.vote(rater, "anew", state.pair.pair, {"overall": "right"}, 9.0)
    assert Counter(vote.answers["overall"] for vote in read_votes(study.store)) == {"left": 1, "right": 1}
    assert study.store.rows("select count(*) from votes where withdrawn is not null")[0][0] == 1


def test_what_the_rules_do_not_allow_is_refused(study):
    session, ann, bob = study.session, study.session.join("ann"), study.session.join("bob")
    pair = session.state(ann).pair.pair

    def refused(status, *values):
        with pytest.raises(RefusedError) as caught:
            session.vote(*values, 1.0)
        assert caught.value.status == status

    refused(422, ann, "x", pair, {"overall": "left"})  # before both clips can have been played
    study.clock.now += 10
    refused(404, bob, "x", pair, {"overall": "left"})
    refused(401, "nobody", "x", pair, {"overall": "left"})
    for answers in ({}, {"overall": "both"}, {"overall": "left", "sound": "left"}, {"sound": "left"}):
        refused(422, ann, "x", pair, answers)
    for name in ("", "  ", "x" * 65, "a\x00b"):
        with pytest.raises(RefusedError):
            session.join(name)
    assert session.join(" ann ") == ann, "the same name goes on where it stopped"
    assert not read_votes(study.store)


def test_only_raters_on_the_list(tmp_path, monkeypatch):
    study = Study(tmp_path / "v.sqlite", monkeypatch, raters=frozenset({"k7"}))
    study.session.join("k7")
    with pytest.raises(RefusedError, match="not on the study's list"):
        study.session.join("ann")


def test_the_goal_ends_a_rater_who_may_go_on(tmp_path, monkeypatch):
    study = Study(tmp_path / "v.sqlite", monkeypatch, goal=2)
    rater = study.session.join("ann")
    assert study.vote(rater, "left") and study.vote(rater, "left") and study.vote(rater, "left") is None
    state = study.session.state(rater)
    assert (state.answered, state.exhausted) == (2, False)
    beyond = study.session.state(rater, beyond_goal=True).pair
    assert study.session.state(rater).pair == beyond, "a page that is loaded again shows it too"


def test_attention_checks_are_drawn_and_a_careless_rater_is_flagged_not_dropped(tmp_path, monkeypatch, capsys):
    path = tmp_path / "v.sqlite"
    study = Study(path, monkeypatch, "ABCD", 12, check_share=0.3)
    for name in ("ann", "bob", "eve"):
        rater = study.session.join(name)
        for _ in range(24):
            study.vote(rater, "left" if name == "eve" else better("ABCD"))
    votes = read_votes(study.store)
    kinds = Counter(vote.kind for vote in votes)
    assert kinds["identical"] > 5 and kinds["damaged"] > 5 and 15 < kinds["identical"] + kinds["damaged"] < 40
    eve, ann, bob = summarise_raters(votes)
    assert eve.rater == "eve" and eve.failed > eve.checks / 2 and "attention checks" in eve.flag
    assert (ann.failed, ann.flag, bob.flag) == (0, "", "") and ann.checks > 4
    both = analyse(votes, "overall", AnalysisSettings())
    assert both.votes == kinds["vote"], "checks are no votes"
    assert fit(["--store", str(path), "--without-flagged"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 3 raters flagged" in printed and "eve: failed" in printed
    assert f"with flagged raters too ({both.votes} votes)" in printed
    assert f"  {both.votes - eve.votes} votes (" in printed


@pytest.mark.parametrize(
    "kind, damaged, answer, failed",
    [("identical", None, "left", True), ("identical", None, "tie", False), ("identical", None, "bad", False)]
    + [("damaged", "left", "left", True), ("damaged", "left", "right", False), ("damaged", "left", "tie", True)]
    + [("damaged", "right", "right", True), ("damaged", "right", "bad", False)],
)
def test_what_fails_a_check(kind, damaged, answer, failed):
    lengths, answers = (5.0, 5.0), {"overall": answer}
    assert is_failed(CastVote("a", kind, "p", "A", "A", damaged, (None, None), lengths, answers, None)) == failed


def test_the_report_has_effects_ranks_and_what_to_ask(tmp_path, monkeypatch, capsys):
    """A beats B beats C in most votes; who stands on the left has no effect; the louder system is A."""
    path, out = tmp_path / "v.sqlite", tmp_path / "report"
    study = Study(path, monkeypatch, prompts=10, questions=("overall", "sync"))
    for number in range(6):
        rater = study.session.join(f"r<{number}>")
        for turn in range(16):
            study.vote(rater, better("ABC" if (number + turn) % 6 else "CBA"))
    assert fit(["--store", str(path), "--out", str(out), "--anchor", "B=1200", "--adjust", "position"]) == 0
    printed = capsys.readouterr().out
    for words in ("clustered 95 %", "bootstrap 95 %", "sandwich 95 %", "position effect", "ask next", "rank", "Wilson"):
        assert words in printed
    report = json.loads((out / "votes.json").read_text())
    result = report["results"]["overall"]
    elo = {row["system"]: row["elo"] for row in result["systems"]}
    assert elo["A"] > elo["B"] == 1200 > elo["C"] and result["votes"] == 96
    rows = {row["system"]: row for row in result["systems"]}
    assert rows["B"]["intervals"]["clustered"] == [1200, 1200], "the anchor is given, not measured"
    assert rows["A"]["rank"] == [1, 1] and rows["C"]["rank"] == [3, 3]
    position = next(effect for effect in result["effects"] if effect["name"] == "position")
    assert position["interval"][0] < 0 < position["interval"][1]
    # Each system's loudness is the same in all its clips: that cannot be told from the system.
    assert {effect["name"] for effect in result["effects"]} == {"position"}
    page = (out / "votes.html").read_text()
    assert "r&lt;0&gt;" in page and "r<0>" not in page and "http" not in page and "<svg" in page
    assert fit(["--store", str(path), "--out", str(out)]) == 0, "its own report is replaced"
    (out / "votes.json").write_text("{}")
    with pytest.raises(MovaError, match="not replaced"):
        fit(["--store", str(path), "--out", str(out)])


def test_disconnected_systems_have_no_joint_table(study, capsys):
    rater = study.session.join("ann")
    while study.vote(rater, better("ABC")):
        pass
    votes = read_votes(study.store)
    apart = [vote for vote in votes if "C" not in (vote.left, vote.right)]
    apart += [CastVote("ann", "vote", "p", "C", "D", None, (None, None), (5, 5), {"overall": "tie"}, None)]
    with pytest.raises(MovaError, match=r"A, B; C, D.*--systems") as caught:
        analyse(apart, "overall", AnalysisSettings())
    assert "\n" not in str(caught.value)
    assert analyse(apart, "overall", AnalysisSettings(systems=("C", "D"))).votes == 1
    result = analyse(votes, "overall", AnalysisSettings())
    assert result.prior == 400 and "A over B over C" in result.notes[0], "separable: said, and by what it was mended"
    with pytest.raises(MovaError, match="no votes on system 'E'"):
        analyse(votes, "overall", AnalysisSettings(systems=("A", "E")))


def test_a_decision_that_may_be_looked_at_often_wants_more_errors():
    assert sequential_factor(1000, 1000) == pytest.approx(3.035, abs=0.01)
    assert sequential_factor(30, 1000) > 4 and sequential_factor(100_000, 1000) > 3.035 > 1.96


def test_a_store_belongs_to_one_study(study, tmp_path):
    study.store.agree("questions", [["overall", "Which clip is better overall?"]])
    with pytest.raises(MovaError, match="was begun with questions"):
        study.store.agree("questions", [["sound", "x"]])
    with pytest.raises(MovaError, match="another file than the one"):
        study.store.add_clips({"p0": ""}, {("A", "p0"): ("1" * 64, 5.0, None)})
    more = study.store.add_clips({"p0": ""}, {("D", "p0"): ("1" * 64, 5.0, None), ("A", "p0"): ("0" * 64, 5.0, None)})
    assert more["A", "p0"] == study.numbers["A", "p0"], "clips may be added"
    foreign = tmp_path / "other.sqlite"
    database = sqlite3.connect(foreign)
    database.execute("create table votes (x)")
    database.close()
    for path in (foreign, __file__, tmp_path / "nowhere"):
        with pytest.raises(MovaError):
            VoteStore.open(type(tmp_path)(path))
    assert study.store.rows("pragma journal_mode")[0][0] == "wal" and study.store.rows("pragma synchronous")[0][0] == 2


def test_a_store_that_cannot_be_written_is_a_refusal_and_the_vote_can_be_sent_again(study, monkeypatch):
    """As on a full disk: nothing is stored by halves."""
    rater = study.session.join("ann")
    pair = study.session.state(rater).pair
    study.clock.now += 10
    size = study.store.rows("pragma page_count")[0][0]
    study.store.rows(f"pragma max_page_count = {size}")
    with pytest.raises(MovaError, match="cannot be written to .*full"):
        for number in range(1000):
            study.session.join(f"rater {number} " + "x" * 40)
    study.store.rows("pragma max_page_count = 100000")
    study.session.vote(rater, "v", pair.pair, {"overall": "left"}, 1.0)
    assert len(read_votes(study.store)) == 1 and study.store.rows("pragma integrity_check")[0][0] == "ok"


def test_few_votes_are_said_to_be_few(study):
    rater = study.session.join("ann")
    for number in range(6):
        study.vote(rater, better("ABC" if number % 3 else "CBA"))
    result = analyse(read_votes(study.store), "overall", AnalysisSettings())
    assert any("bootstrap has no bound" in note or "separable" in note for note in result.notes)
    assert any("all votes are of one rater" in note for note in result.notes)
