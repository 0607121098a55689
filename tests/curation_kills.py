"""Kill -9 of a whole curation, engine and workers, at random moments: what is found then, by the same command again.

python tests/curation_kills.py [KILLS] [FILMS]
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from small_films import write_films

SETTINGS = ("--clip.frames", "25", "--workers", "2", "--also", "av-align")
# What a run leaves that is the same however it came about.
RESULTS = ("clips.parquet", "metadata.jsonl", "funnel.json", "failures.jsonl")


def start(films: Path, out: Path, *more: str) -> subprocess.Popen:
    """A curation in a process group of its own."""
    command = [sys.executable, "-m", "mova_engine", "curate", str(films), "--out", str(out), *SETTINGS, *more]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(program: subprocess.Popen) -> None:
    """Wait for a run that is to end well."""
    _, errors = program.communicate(timeout=600)
    assert program.returncode == 0, errors.decode()


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS}


def parts(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in (out / "ledger").rglob("*.parquet")}


def working_seconds(program: subprocess.Popen, out: Path) -> float:
    """How long a run works that is left to end well: from its first part of the ledger on."""
    _wait_for_a_part(program, out, set())
    begun = time.monotonic()
    finish(program)
    return time.monotonic() - begun


def kill_at(program: subprocess.Popen, out: Path, before: set[str], seconds: float) -> bool:
    """Kill the group so many seconds after it has written a part that was not there before; whether it still ran."""
    _wait_for_a_part(program, out, before)
    try:
        program.wait(seconds)
        assert program.returncode == 0, program.communicate()[1].decode()
        return False
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
        return True


def _wait_for_a_part(program: subprocess.Popen, out: Path, before: set[str]) -> None:
    while program.poll() is None and not parts(out) - before:
        time.sleep(0.01)


def kill_rounds(films: Path, place: Path, kills: int, seed: int = 0, tell=lambda line: None) -> int:
    """Kill runs of these films at random moments, again and again in one folder until it is done, then in a fresh one,
    until so many kills hit a run. Each folder's results must be those of an undisturbed run. Returns the folders.
    """
    draw = random.Random(seed)
    length = working_seconds(start(films, place / "whole"), place / "whole")
    expected = results(place / "whole")
    hits = folders = 0
    while hits < kills:
        out = place / f"killed {folders}"
        folders += 1
        while hits < kills and kill_at(start(films, out), out, parts(out), draw.uniform(0.0, 0.7) * length):
            hits += 1
            tell(f"kill {hits}: {len(parts(out))} parts of {len(parts(place / 'whole'))} are there")
        finish(start(films, out))
        assert results(out) == expected, f"{out}: other results than without a kill"
        assert parts(out) == parts(place / "whole")
    return folders


if __name__ == "__main__":
    count, many = (int(word) for word in (*sys.argv[1:], "20", "12")[:2])
    with tempfile.TemporaryDirectory() as folder:
        write_films(Path(folder) / "films", many)
        done = kill_rounds(Path(folder) / "films", Path(folder), count, tell=print)
    print(f"{count} kills in {done} folders: each has the bytes of an undisturbed run")
