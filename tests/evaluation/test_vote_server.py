"""The server of votes in processes of its own: what it tells, what it refuses, and that no vote is lost."""

import secrets
import sqlite3
import threading
import time
from http.client import HTTPException

import pytest
from vote_servers import SECONDS, SYSTEMS, serving, write_study

from mova_engine.evaluation.votes.vote_analysis import read_votes
from mova_engine.evaluation.votes.vote_store import VoteStore

pytestmark = pytest.mark.serving
pytest.importorskip("fastapi", reason="fastapi is not installed: pip install mova-engine[serve]")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def server(study, tmp_path_factory):
    with serving(study, tmp_path_factory.mktemp("store") / "votes.sqlite", "--checks", "0.3", "--goal", "6") as found:
        yield found


def names_in(*texts) -> list[str]:
    """Systems that some text or bytes tell of."""
    whole = b"\n".join(text if isinstance(text, bytes) else str(text).encode() for text in texts).lower()
    return [word for system in SYSTEMS for word in (system, *system.split("-")) if word.encode() in whole]


def test_nothing_that_is_sent_tells_a_system(server, study):
    """Everything a rater's browser is sent for six pairs: pages, states, headers, every byte of every clip."""
    sent, sizes = [], {}
    for path in ("/", "/vote.css", "/vote.js", "/nowhere", "/clips/nowhere"):
        sent += server.call(path)[1:]
    rater = server.join("ann")
    for _ in range(6):
        _, head, state = server.call("/api/state", rater=rater)
        sent += [head, state]
        pair = state["pair"]
        assert set(pair) == {"id", "left", "right", "prompt"}
        for side in ("left", "right"):
            status, head, body = server.call(f"/clips/{pair[side]}")
            assert status == 200 and head["Content-Type"] == "video/mp4" and body[4:8] == b"ftyp"
            assert not {"etag", "last-modified", "server", "content-disposition"} & {name.lower() for name in head}
            sizes.setdefault(pair["prompt"], set()).add(len(body))
            sent += [head, body]
        time.sleep(2 * SECONDS - 0.9)
        vote = {"id": secrets.token_hex(8), "pair": pair["id"], "answers": {"overall": "tie"}}
        status, head, body = server.call("/api/votes", vote, rater)
        assert (status, body) == (200, {"stored": vote["id"]})
        sent += [head, body]
    assert not names_in(*sent)
    assert all(len(each) == 1 for each in sizes.values()), "copies of one prompt have one size"
    assert names_in(b"by mova-zebra") == ["mova-zebra", "mova", "zebra"], "the search finds what is there"
    assert server.call("/api/state", rater=rater)[2]["pair"] is None, "the goal is reached"


def test_ranges_of_a_clip_are_its_parts(server):
    rater = server.join("ranges")
    token = server.call("/api/state", rater=rater)[2]["pair"]["left"]
    _, head, whole = server.call(f"/clips/{token}")
    assert head["Accept-Ranges"] == "bytes"
    for header, (begin, end) in {
        "bytes=0-99": (0, 100),
        "bytes=500-": (500, len(whole)),
        "bytes=-7": (-7, None),
    }.items():
        status, head, part = server.call(f"/clips/{token}", Range=header)
        assert status == 206 and part == whole[begin:end]
        assert head["Content-Range"].endswith(f"/{len(whole)}") and int(head["Content-Length"]) == len(part)
    assert server.call(f"/clips/{token}", Range=f"bytes={len(whole)}-")[0] == 416
    status, head, body = server.call(f"/clips/{token}", method="HEAD")
    assert (status, int(head["Content-Length"]), body) == (200, len(whole), b"")


@pytest.mark.parametrize(
    "path",
    ["/clips/../../etc/passwd", "/clips/..%2f..%2fetc%2fpasswd", "/clips/%2e%2e/vote.sqlite", "/../vote_server.py"]
    + ["/clips/", f"/clips/{'x' * 5000}", "/vote.html", "/docs", "/openapi.json", "/clips/1", "/clips/p0.mp4"],
)
def test_only_what_is_listed_is_served(server, path):
    status, _, body = server.call(path)
    assert status in (404, 405) and b"root:" not in (body if isinstance(body, bytes) else b"")


def test_what_is_sent_wrongly_is_refused_and_the_server_goes_on(server):
    rater = server.join("bad")
    pair = server.call("/api/state", rater=rater)[2]["pair"]["id"]
    vote = {"id": "x", "pair": pair, "answers": {"overall": "left"}}
    for sent in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 10_000,
        b'"' + b"x" * 100_000,
        {"id": 1, "pair": pair, "answers": {}},
        {**vote, "answers": {"overall": 1}},
        {**vote, "answers": {"overall": "middle"}},
        {**vote, "id": "x" * 300},
    ):
        assert server.call("/api/votes", sent, rater)[0] == 422
    assert server.call("/api/votes", vote, rater)[0] == 422, "sooner than both clips can be played"
    assert server.call("/api/votes", vote, "nobody")[0] == server.call("/api/state")[0] == 401
    assert server.call("/api/join", {"name": "x" * 100})[0] == 422
    assert server.call("/api/undo", {"vote": "none"}, rater)[0] == 404
    assert server.call("/api/state", rater=rater)[0] == 200
    status, _, _ = server.call("/api/join", {"name": "foreign"}, rater=None)
    assert status == 422, "a page of another site cannot send the header"
    head = server.call("/")[1]
    assert "default-src 'none'" in head["Content-Security-Policy"] and head["X-Content-Type-Options"] == "nosniff"


def test_only_this_machine_by_default(server, study, tmp_path):
    assert server.url.startswith("http://127.0.0.1:") and any("only this machine" in line for line in server.lines)
    with serving(study, tmp_path / "v.sqlite", "--host", "0.0.0.0", "--checks", "0") as open_server:
        assert any("warning: whoever reaches this machine can vote" in line for line in open_server.lines)


def _vote_until_told(server, name, stop, acknowledged, count=10**6):
    """Votes one after the other; notes those that were acknowledged."""
    try:
        rater = server.join(name)
        for _ in range(count):
            if stop.is_set():
                return
            pair = server.call("/api/state?more=1", rater=rater)[2]["pair"]
            if pair is None:
                return
            vote = {"id": secrets.token_hex(8), "pair": pair["id"], "answers": {"overall": "left"}, "seconds": 1}
            while True:
                status, _, body = server.call("/api/votes", vote, rater)
                if status == 422 and "played to their end" in body["error"]:
                    time.sleep(0.1)
                    continue
                break
            if status == 200:
                acknowledged.append(vote["id"])
    except (OSError, HTTPException):
        return  # killed


def test_a_killed_server_loses_no_acknowledged_vote(study, tmp_path):
    store = tmp_path / "votes.sqlite"
    acknowledged, kept = [], 0
    for kill in range(2):
        stop = threading.Event()
        with serving(study, store, "--checks", "0", "--tolerance", "9") as server:
            threads = [
                threading.Thread(target=_vote_until_told, args=(server, f"r{kill}-{n}", stop, acknowledged))
                for n in range(6)
            ]
            for thread in threads:
                thread.start()
            wanted, deadline = kept + 12, time.monotonic() + 60
            while len(acknowledged) < wanted and time.monotonic() < deadline:
                time.sleep(0.01)
            server.kill()
            stop.set()
            for thread in threads:
                thread.join()
        known = {row["id"] for row in VoteStore.open(store).rows("select id from votes where withdrawn is null")}
        assert set(acknowledged) <= known and len(acknowledged) >= wanted
        kept = len(acknowledged)
    assert sqlite3.connect(store).execute("pragma integrity_check").fetchone() == ("ok",)


def test_two_servers_share_a_store_and_a_vote_sent_to_both_counts_once(study, tmp_path):
    store = tmp_path / "votes.sqlite"
    stop, acknowledged = threading.Event(), []
    with serving(study, store, "--checks", "0") as one, serving(study, store, "--checks", "0") as two:
        threads = [
            threading.Thread(target=_vote_until_told, args=(server, f"r{n}", stop, acknowledged, 3))
            for n, server in enumerate((one, two, one, two))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rater = one.join("both")
        assert two.join("both") == rater
        pair = one.call("/api/state", rater=rater)[2]["pair"]
        assert two.call("/api/state", rater=rater)[2]["pair"] == pair, "one rater's page, whichever server answers"
        assert two.call(f"/clips/{pair['left']}")[2] == one.call(f"/clips/{pair['left']}")[2]
        time.sleep(2 * SECONDS - 0.9)
        vote = {"id": "same", "pair": pair["id"], "answers": {"overall": "right"}}
        answers = []
        sends = [
            threading.Thread(target=lambda s=s: answers.append(s.call("/api/votes", vote, rater)[0]))
            for s in (one, two)
        ]
        for send in sends:
            send.start()
        for send in sends:
            send.join()
        assert answers == [200, 200]
        assert one.call("/api/votes", {**vote, "id": "other"}, rater)[0] == 409
    votes = read_votes(VoteStore.open(store))
    assert len(votes) == len(acknowledged) + 1 == 13
    shown = {(vote.rater, vote.prompt, frozenset((vote.left, vote.right))) for vote in votes}
    assert len(shown) == 13, "no rater saw a pair twice"
