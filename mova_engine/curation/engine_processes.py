"""Runs work in processes of this machine: one unit at a time each, and a unit that ends its process ends nothing else.

    engine --socket--> worker (opens the work once, then runs one unit after the other)

A worker is replaced after a number of units, and where it holds much memory between two of them. One that exceeds its
memory within a unit, or shows no sign of life, is ended, which counts as an attempt of that unit. Workers end when the
engine's process does, however it ends.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Pipe, wait
from typing import Any

from mova_engine.backend import describe_backend
from mova_engine.curation.engine_work import DIED, STALLED, Attempts, EngineLimits, Outcome, Work
from mova_engine.curation.engine_worker import ENDS_WITHIN_S
from mova_engine.data.helper_signals import stop_signals_held

# What libraries read of a worker's environment when they are loaded.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# How often workers' memory is looked at.
LOOKS_EVERY_S = 1.0
_SERVE = "import sys; from mova_engine.curation.engine_worker import serve; serve(*map(int, sys.argv[1:]))"


class ProcessPool:
    """Workers that are started as work comes, and kept from one work to the next; `close` ends them."""

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._memory = limits.worker_bytes or describe_backend("cpu").free_memory()[1] // limits.workers
        self._idle: list[_Worker] = []

    def run(self, work: Work, items: Iterable[Any]) -> Iterator[Outcome]:
        """The outcome of each item, in the order in which they end. Items are taken from `items` as workers are free.

        Raises StopRunError where a worker says that the run cannot go on. Workers that are at an item when the iterator
        is closed or raises are ended; what they have measured so far they store before.
        """
        attempts, pickled = Attempts.of(items), pickle.dumps(work)
        busy: list[_Worker] = []
        ended: list[Outcome | None] = []
        try:
            while True:
                while len(busy) < self._limits.workers and (taken := attempts.take()) is not None:
                    busy.append(self._idle.pop() if self._idle else _Worker(self._limits.stalled_s))
                    busy[-1].give(pickled, *taken)
                yield from (outcome for outcome in ended if outcome is not None)
                if not busy:
                    return
                ended = []
                for worker in _ready(busy, self._memory):
                    answer = worker.answer()
                    busy.remove(worker)
                    if worker.gone or worker.served >= self._limits.units_each or worker.memory() > self._memory // 2:
                        worker.end()
                    else:
                        self._idle.append(worker)
                    ended.append(attempts.ended(*worker.taken, answer))
        finally:
            _end_all(busy)

    def close(self) -> None:
        """End the workers that are left."""
        _end_all(self._idle)
        self._idle = []


class _Worker:
    """The engine's end of one worker."""

    def __init__(self, stalled_s: int) -> None:
        self.connection, theirs = Pipe()
        with theirs, stop_signals_held():
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(theirs.fileno()), str(stalled_s)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self.taken: tuple[Any, int] = (None, 0)
        self.served, self.gone, self._exceeded = 0, False, ""
        self._look_at = time.monotonic() + LOOKS_EVERY_S

    def give(self, work: bytes, item: Any, attempt: int) -> None:
        """Have it run the work on an item."""
        self.taken = item, attempt
        with contextlib.suppress(OSError):  # it has died: `answer` says so
            self.connection.send((work, item))

    def answer(self) -> tuple[str, Any]:
        """What it has answered, as `run_item`; of one that has died, why."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.gone = True
            died = self._process.wait()
            return "failed", self._exceeded or (STALLED if died == -signal.SIGALRM else DIED)
        self.served += 1
        return answer

    def memory(self) -> int:
        """Bytes that it holds; 0 where the system does not tell."""
        try:
            with open(f"/proc/{self._process.pid}/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def end_if_above(self, most: int) -> None:
        """Kill it where it holds more memory than that; looked at every LOOKS_EVERY_S seconds."""
        if (now := time.monotonic()) < self._look_at:
            return
        self._look_at = now + LOOKS_EVERY_S
        if self.memory() > most:
            self._exceeded = f"more than {most / 2**30:.3g} GiB of memory"
            self._process.kill()

    def ask_to_end(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()
        if self._process.poll() is None:
            self._process.terminate()

    def end(self, within_s: float = ENDS_WITHIN_S) -> None:
        self.ask_to_end()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _ready(workers: list[_Worker], memory: int) -> list[_Worker]:
    """The workers that have answered or died, after waiting for one."""
    while True:
        for worker in workers:
            worker.end_if_above(memory)
        if found := wait([worker.connection for worker in workers], LOOKS_EVERY_S):
            return [worker for worker in workers if worker.connection in found]


def _end_all(workers: list[_Worker]) -> None:
    """Ask all to end, then wait for all together."""
    for worker in workers:
        worker.ask_to_end()
    until = time.monotonic() + ENDS_WITHIN_S
    for worker in workers:
        worker.end(max(0.0, until - time.monotonic()))
