"""The pool of worker processes: results, attempts, what ends a worker, and how a run is stopped."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from small_works import Accidents, Squares

from mova_engine.curation.engine_processes import ProcessPool
from mova_engine.curation.engine_work import ATTEMPTS, DIED, STALLED, EngineLimits, Outcome, StopRunError


def run(work, items, **limits):
    with closing(ProcessPool(EngineLimits(**{"workers": 1, **limits}))) as pool:
        return list(pool.run(work, items))


def test_each_item_has_its_result_and_the_work_is_opened_once_by_each_worker(tmp_path):
    found = run(Squares(tmp_path), range(20), workers=2)
    assert {(each.item, each.result, each.attempts) for each in found} == {(n, n * n, 1) for n in range(20)}
    assert 1 <= len(list(tmp_path.glob("opened-*"))) <= 2


def test_items_are_taken_as_workers_become_free(tmp_path):
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    with closing(ProcessPool(EngineLimits(workers=2))) as pool, closing(pool.run(Squares(tmp_path), items())) as found:
        next(found)
        assert len(taken) <= 4


def test_workers_are_kept_from_one_work_to_the_next(tmp_path):
    with closing(ProcessPool(EngineLimits(workers=1))) as pool:
        assert [each.result for each in pool.run(Squares(tmp_path), [2, 3])] == [4, 9]
        assert [each.result for each in pool.run(Squares(tmp_path, 0.001), [4])] == [16]
    assert len(list(tmp_path.glob("opened-*"))) == 1


def test_a_worker_is_replaced_after_a_number_of_units(tmp_path):
    run(Squares(tmp_path), range(6), units_each=2)
    assert len(list(tmp_path.glob("opened-*"))) == 3


def test_failures_are_tried_three_times_and_the_others_go_on(tmp_path):
    items = ["refused", "fine", "fault", "killed", "exits", "killed until 3", "refused until 2", "well"]
    found = {each.item: each for each in run(Accidents(tmp_path), items, workers=2)}
    assert found == {
        "refused": Outcome("refused", reason="cannot be read", attempts=ATTEMPTS),
        "fault": Outcome("fault", reason="ValueError: a fault", attempts=ATTEMPTS),
        "killed": Outcome("killed", reason=DIED, attempts=ATTEMPTS),
        "exits": Outcome("exits", reason=DIED, attempts=ATTEMPTS),
        "killed until 3": Outcome("killed until 3", "killed after 3", attempts=3),
        "refused until 2": Outcome("refused until 2", "refused after 2", attempts=2),
        "fine": Outcome("fine", "fine"),
        "well": Outcome("well", "well"),
    }
    assert (tmp_path / "killed").read_text().count("tried") == ATTEMPTS


def test_a_worker_that_shows_no_sign_of_life_is_ended(tmp_path):
    found = {each.item: each.reason for each in run(Accidents(tmp_path), ["hangs", "fine"], stalled_s=1)}
    assert found == {"hangs": STALLED, "fine": ""}


@pytest.mark.long
def test_a_worker_that_takes_too_much_memory_is_ended(tmp_path):
    found = {each.item: each.reason for each in run(Accidents(tmp_path), ["grows", "fine"], worker_bytes=1 << 29)}
    assert found == {"grows": "more than 0.5 GiB of memory", "fine": ""}


def test_a_full_disk_ends_the_run(tmp_path):
    with pytest.raises(StopRunError, match="no space left"):
        run(Accidents(tmp_path), ["fine", "disk full", "well"])


_PROGRAM = """
import sys
from pathlib import Path
from mova_engine.curation.engine_processes import ProcessPool
from mova_engine.curation.engine_work import EngineLimits
from mova_engine.distributed.stop_signals import ended_at_once
from small_works import Stored
with ended_at_once(lambda: "the same command goes on"):
    list(ProcessPool(EngineLimits(workers=2)).run(Stored(Path(sys.argv[1])), ["a", "b", "c"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_and_workers_store_what_they_have(tmp_path, number):
    program = _started(tmp_path)
    # To the whole group, as a terminal and a batch system do.
    os.killpg(program.pid, number)
    assert program.wait(timeout=60) == 128 + number
    assert sorted(path.name for path in tmp_path.glob("* stored")) == ["a stored", "b stored"]
    assert all(0 < int(path.read_text()) < 600 for path in tmp_path.glob("* stored"))


@pytest.mark.long
def test_workers_end_when_the_engine_is_killed(tmp_path):
    program = _started(tmp_path)
    workers = [int(each) for each in _children(program.pid)]
    assert len(workers) == 2
    program.kill()
    program.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert sorted(path.name for path in tmp_path.glob("* stored")) == ["a stored", "b stored"]


def _started(folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(folder)], env=environment, start_new_session=True, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 120
    while len(list(folder.glob("* begun"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(list(folder.glob("* begun"))) == 2
    return program


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
