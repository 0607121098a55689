"""Kill -9 of workers in every state of their jobs, on SQLite and on PostgreSQL: nothing that was accepted is lost."""

import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from killing import STATES, kill_rounds
from mova_servers import write_tiny_model
from worker_tools import LIMITS, ForkedWorker, new_video, wait_for, worker_settings

from mova_engine.serving.job_store import JobStore
from mova_engine.serving.video_worker import VideoWorker

pytestmark = pytest.mark.serving
EACH = {(state, "gone" if state == "deleting" else "whole"): 1 for state in STATES}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def _postgres_programs() -> Path | None:
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


def _unprivileged() -> str | None:
    """Whom to start a cluster as: PostgreSQL refuses root. None: as who we are."""
    if os.geteuid():
        return None
    names = [each.pw_name for each in pwd.getpwall()]
    return next(name for name in ("postgres", "nobody") if name in names)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The URL of a cluster of this test's own."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg")
    user, folder = _unprivileged(), Path(f"/tmp/mova-pg-{os.getpid()}")
    folder.mkdir(mode=0o700)
    who = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"] if user else []
    if user:
        shutil.chown(folder, user)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    make = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "mova", "--auth=trust", "--no-sync"]
    subprocess.run([*who, *make], check=True, capture_output=True, cwd="/tmp", timeout=120)
    options = ["-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
    server = subprocess.Popen(
        [*who, str(programs / "postgres"), *options], cwd="/tmp", stderr=subprocess.PIPE, text=True
    )
    try:
        for line in server.stderr:
            if "ready to accept connections" in line:
                break
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield f"postgresql://mova@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_kill_in_any_state_loses_nothing(checkpoint, tmp_path):
    assert kill_rounds(checkpoint, tmp_path / "store", 1) == EACH


def test_a_kill_in_any_state_loses_nothing_on_postgresql(checkpoint, tmp_path, postgres):
    assert kill_rounds(checkpoint, tmp_path / "store", 1, postgres) == EACH


def test_two_workers_share_a_postgresql_queue_and_one_is_killed(checkpoint, tmp_path, postgres):
    worker = VideoWorker(worker_settings(checkpoint, tmp_path / "store", database=postgres, batch=1))
    store = JobStore.open(postgres, tmp_path / "store", LIMITS)
    store.engine.dispose()
    jobs = [new_video(seed=seed, steps=16) for seed in range(6)]
    two = [ForkedWorker(worker), ForkedWorker(worker)]
    for job in jobs:
        store.add(job)
    names = [each.name for each in two]

    def both_work() -> bool:
        busy = {found.worker for job in jobs if (found := store.get(job.id)).status == "in_progress"}
        return busy == set(names)

    wait_for(both_work)
    two[0].kill()
    assert store.recover([names[0]]) == [names[0]]
    done = [wait_for(lambda job=job: found if (found := store.get(job.id)).ended else None) for job in jobs]
    two[1].kill()
    assert [each.status for each in done] == ["completed"] * 6
    assert {each.worker for each in done} <= set(names)
    assert max(each.attempts for each in done) == 2
    digests = {hashlib.sha256(store.file(job.id, "video.mp4").read_bytes()).hexdigest() for job in jobs}
    assert len(digests) == 6
    store.close()
    worker.store.close()
