"""The baseline in a subprocess, timed interleaved with the engine in this one.

What a process has set once, it has for all that runs in it: here the memory allocator. The backend lets freed memory
stay with the process (`backend/cpu.py`), and the published formulation run beside the engine would have that too. In a
process of its own it has the system's allocator as it comes, as its users have it.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from mova_engine.backend import get_backend
from mova_engine.backend.cpu import KEEP_MEMORY
from mova_engine.bench.candidate import Here, Side, drawn_once
from mova_engine.bench.workloads import Tensors, Workload
from mova_engine.errors import MovaError

# Seconds after a turn: the threads of the process that had it still look for more to do, a few milliseconds long.
_SETTLE = 0.02


class Apart:
    """`Here`, but elsewhere: the same methods, done by a process that draws the same tensors. A context manager."""

    def __init__(self, side: Side, source: torch.dtype) -> None:
        self.side = side
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        serve = (theirs, side.remake, source, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=serve, daemon=True)
        kept = os.environ.get(KEEP_MEMORY)
        os.environ[KEEP_MEMORY] = "0"
        try:
            self._process.start()
        finally:
            os.environ.pop(KEEP_MEMORY)
            if kept is not None:
                os.environ[KEEP_MEMORY] = kept
        theirs.close()

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((method, arguments))
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=10)
            raise MovaError(
                f"the process of '{self.side.name}' ended during '{method}' (exit status {self._process.exitcode}; "
                "-9: out of memory, most likely): measure something smaller, or with --one-process"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def begin(self, job: Workload) -> None:
        self._ask("begin", job)

    def results(self) -> Tensors:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "results.pt")
            self._ask("results", path)
            return torch.load(path)

    def run(self) -> float:
        time.sleep(_SETTLE)
        seconds = self._ask("run")
        time.sleep(_SETTLE)
        return seconds

    def memory(self) -> Mapping[str, int | None]:
        return self._ask("memory")


def _serve(pipe: Connection, remake: Any, source: torch.dtype, threads: int) -> None:
    """The subprocess's loop: serve requests until the pipe is closed."""
    torch.set_num_threads(threads)
    backend = get_backend("cpu")
    with backend.full_precision():
        side = Here(remake(), backend, drawn_once(backend, source), source)
        while True:
            try:
                method, arguments = pipe.recv()
            except EOFError:
                return
            try:
                if method == "results":
                    answer = torch.save(side.results(), *arguments)
                else:
                    answer = getattr(side, method)(*arguments)
            except Exception as error:  # it is for the process that asked to report
                answer = error if isinstance(error, MovaError) else RuntimeError(f"{type(error).__name__}: {error}")
            pipe.send(answer)
