"""Whatever reading a file does to the process that reads it, the caller lives on and is told which file it was."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from data_pipeline import deadly

from mova_engine.data import latent_cache as cache_module
from mova_engine.data.media import reader_process as apart_module
from mova_engine.data.media.reader_process import FatalFileError
from mova_engine.data.metadata import read_metadata
from mova_engine.errors import MovaError


def ended(process: int) -> bool:
    """Whether a process has ended, or does within some seconds."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def limits(monkeypatch, request):
    monkeypatch.setattr(apart_module, "CPU_SECONDS", 1)
    # A busy machine may take long for a second of processor time.
    waits = request.node.callspec.params["function"] is deadly.sleeps
    monkeypatch.setattr(apart_module, "WALL_SECONDS", 1 if waits else 200)
    monkeypatch.setattr(apart_module, "MEMORY", 1 << 30)


def test_results_errors_and_log_records_come_back(caplog):
    result = deadly.good("a.mp4", size=(3, 5))
    assert result["process"] != os.getpid() and result["none"] is None
    assert result["pictures"].tolist() == [[7] * 5] * 3 and result["pictures"].flags.writeable
    assert result["sound"].tolist() == [0, 1, 2, 3, 4]
    assert "a.mp4 is odd" in caplog.text
    with pytest.raises(MovaError, match="^b.mp4: too short$"):
        deadly.refused("b.mp4")
    with pytest.raises(KeyError, match="no such key"):
        deadly.has_a_bug("c.mp4")


def test_a_caller_that_ends_with_an_answer_unread_ends_its_server_without_a_word(capfd):
    server = apart_module._Server()
    call = (deadly.good.__module__, "good", ("a.mp4",), {"size": 1}, os.getcwd(), (60, 60, 1 << 30))
    server._socket.send(call)
    assert server._socket.poll(60)
    server.close()  # of a socket with something unread, which resets the connection
    assert server._process.returncode == 0
    assert capfd.readouterr().err == ""


def test_one_worker_serves_until_it_may_be_spoilt():
    first, second = (deadly.good("a.mp4", size=1)["process"] for _ in range(2))
    assert first == second
    with pytest.raises(MovaError):
        deadly.refused("b.mp4")
    assert ended(first) and deadly.good("a.mp4", size=1)["process"] != first


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (deadly.crashes, "crashes the media library (SIGSEGV)"),
        (deadly.aborts, "crashes the media library (SIGABRT)"),
        (deadly.leaves, "ends the process that does, with status 3"),
        (deadly.spins, "takes more than 1 s of processor time"),
        (deadly.sleeps, "takes more than 1 s"),
        (deadly.eats, "takes more than 1 GiB of memory"),
    ],
)
def test_deaths_become_one_line_that_names_the_file(limits, function, reason):
    with pytest.raises(FatalFileError) as caught:
        function("bad.mp4")
    assert str(caught.value) == f"bad.mp4: reading it {reason}"
    assert deadly.good("a.mp4", size=2)["pictures"].tolist() == [7, 7]


def test_threads_read_at_the_same_time():
    def read(k: int) -> bool:
        if k % 5 == 4:
            with pytest.raises(FatalFileError, match=f"^{k}:"):
                deadly.crashes(k)
            return True
        return (deadly.good(k, size=100_000 + k)["pictures"] == 7).sum() == 100_000 + k

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(read, range(15)))


def test_a_forked_process_reads_with_a_worker_of_its_own():
    """As a data worker does, which shares its parent's open files."""
    ours = deadly.good("a.mp4", size=1)["process"]
    child = os.fork()
    if not child:
        os._exit(int(deadly.good("a.mp4", size=1)["process"] == ours))
    assert os.waitpid(child, 0)[1] == 0
    assert deadly.good("a.mp4", size=1)["process"] == ours


CALLER = """
import sys, time
from data_pipeline import deadly
print(deadly.good("a.mp4", size=1)["process"], flush=True)
if len(sys.argv) > 1:
    deadly.sleeps("b.mp4")
time.sleep(600)
"""


@pytest.mark.parametrize("busy", [[], ["busy"]])
def test_workers_ignore_stop_signals_and_end_with_their_caller(busy):
    command = [sys.executable, "-c", CALLER, *busy]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    caller = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    worker = int(caller.stdout.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(worker, number)
    time.sleep(0.2)
    os.kill(worker, 0)  # lives
    caller.kill()
    caller.communicate()
    assert ended(worker)


def test_a_deadly_clip_is_skipped_and_not_read_again(clips, make_cache, monkeypatch):
    reads = []

    def read_clip(path, *args, **options):
        reads.append(path)
        if path.name == "2.mp4":
            deadly.crashes(path)
        return original(path, *args, **options)

    original = cache_module.read_clip
    monkeypatch.setattr(cache_module, "read_clip", read_clip)
    entries = read_metadata(clips)[:4]
    (problem,) = make_cache().fill(entries)
    assert problem.entry == entries[2]
    assert problem.reason.endswith("2.mp4: reading it crashes the media library (SIGSEGV)")
    assert len(reads) == 4
    (problem,) = make_cache().fill(entries)
    assert len(reads) == 4 and "2.mp4: reading it crashes the media library (SIGSEGV) (so an earlier" in problem.reason
    # Another content is another file.
    (clips / "2.mp4").write_bytes((clips / "3.mp4").read_bytes() + b"\0")
    make_cache().fill(entries)
    assert len(reads) == 5
    kept = list((make_cache().folder / "fatal").rglob("*.json"))
    assert len(kept) == 2 and json.loads(kept[0].read_bytes()).keys() == {"reason"}
    assert make_cache().get(entries[3])["audio_latents"].isfinite().all()
