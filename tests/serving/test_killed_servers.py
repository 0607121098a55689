"""Kill -9 and signals to a whole `mova serve`, its workers with it: what was accepted is made, and nothing is left."""

import os
import signal
import time

import pytest
from mova_servers import mova_server, write_tiny_model
from server_load import load
from worker_tools import wait_for

from mova_engine.serving.job_store import JobStore

pytestmark = pytest.mark.serving
CLIP = {"prompt": "a red ball", "num_inference_steps": 8}
SEEDS = range(1, 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def queue(server, **more) -> list[str]:
    """A job of each seed."""
    return [server.post("/v1/videos", **CLIP, seed=seed, **more)["id"] for seed in SEEDS]


def job(server, video: str) -> dict:
    """A job that the server must know."""
    status, found = server.get(f"/v1/videos/{video}")
    assert status == 200, found
    return found


def clips(server, videos: list[str]) -> list[bytes]:
    """The files of jobs, when all are completed."""
    for video in videos:
        found = wait_for(lambda video=video: now if (now := job(server, video))["completed_at"] else None, every=0.05)
        assert found["status"] == "completed", found
    return [server.get(f"/v1/videos/{video}/content")[1] for video in videos]


def processes_of(group: int) -> bool:
    """Whether a process of the group lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def kill_all(server) -> None:
    """SIGKILL to the server and its workers at once."""
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_for(lambda: not processes_of(server.process.pid))


def test_a_server_that_is_killed_with_its_workers_loses_nothing(model, tmp_path):
    store = tmp_path / "store"
    with mova_server(model, store) as server:
        expected = clips(server, queue(server))
    assert len(set(expected)) == len(expected)
    with mova_server(model, store, "--workers", "0") as server:
        videos = queue(server)
        kill_all(server)
    with mova_server(model, store) as server:
        wait_for(lambda: any(job(server, video)["x_mova"]["step"] for video in videos))
        kill_all(server)
    with mova_server(model, store) as server:
        assert clips(server, videos) == expected


def test_workers_end_with_a_server_that_is_killed(model, tmp_path):
    with mova_server(model, tmp_path / "store") as server:
        queue(server, solver="heun")
        wait_for(lambda: any(video["status"] == "in_progress" for video in server.videos()))
        server.kill()
        wait_for(lambda: not processes_of(server.process.pid), 30)


def test_a_worker_that_is_killed_is_started_again(model, tmp_path):
    with mova_server(model, tmp_path / "store") as server:
        first = wait_for(server.workers)
        videos = queue(server)
        wait_for(lambda: any(video["status"] == "in_progress" for video in server.videos()))
        os.kill(first[0], signal.SIGKILL)
        clips(server, videos)
        second = wait_for(server.workers)
        assert len(first) == len(second) == 1 and first != second
        assert any("ended by signal 9" in line for line in server.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_in_order_and_leaves_the_queue(model, tmp_path, number):
    with mova_server(model, tmp_path / "store", "--batch", "1") as server:
        videos = queue(server, solver="heun")
        wait_for(lambda: any(video["status"] == "in_progress" for video in server.videos()))
        # A terminal sends Ctrl-C to all of them.
        begun = time.monotonic()
        (os.killpg if number == signal.SIGINT else os.kill)(server.process.pid, number)
        assert server.process.wait(60) == 0, "".join(server.lines)
        assert time.monotonic() - begun < 30
        assert not processes_of(server.process.pid)
    store = JobStore.open(None, tmp_path / "store")
    left = [store.get(video) for video in videos]
    store.close()
    assert {each.status for each in left} <= {"queued", "completed"} and left[-1].status == "queued"
    assert {each.attempts for each in left if each.status == "queued"} == {0}


def test_many_who_ask_find_all_jobs(model, tmp_path):
    figures = load(model, tmp_path / "store", 24, 12)
    assert set(figures.answers) == {200} and len(figures.seconds) > 24
    assert figures.ends == {"completed": 24}
    before, after = figures.memory[0][0], figures.memory[-1][0]
    assert after < before + 64e6, figures.memory
