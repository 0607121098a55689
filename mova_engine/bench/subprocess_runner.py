"""Runs the baseline in a subprocess, interleaved with the engine in this process.

The engine's backend changes the settings of the process's memory allocator, which keeps freed memory
(`backend/cpu.py`). In the same process the baseline would profit from that. In its own process it has the system's
default allocator, as its users have.
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
from mova_engine.bench.candidate import Candidate, InProcessRunner, drawn_once
from mova_engine.bench.workloads import Tensors, Workload
from mova_engine.errors import MovaError

# Seconds to wait after a turn: for a few milliseconds the threads of the other process still spin for work.
_SETTLE = 0.02


class SubprocessRunner:
    """Runs a candidate in another process, which draws the same tensors. It has the methods of `InProcessRunner`, and
    is a context manager.
    """

    def __init__(self, side: Candidate, source: torch.dtype) -> None:
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

    def __enter__(self) -> "SubprocessRunner":
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
        side = InProcessRunner(remake(), backend, drawn_once(backend, source), source)
        while True:
            try:
                method, arguments = pipe.recv()
            except (EOFError, OSError):
                return
            try:
                if method == "results":
                    answer = torch.save(side.results(), *arguments)
                else:
                    answer = getattr(side, method)(*arguments)
            except Exception as error:  # it is for the process that asked to report
                answer = error if isinstance(error, MovaError) else RuntimeError(f"{type(error).__name__}: {error}")
            pipe.send(answer)
