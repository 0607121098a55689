"""One job at a time beside the training, in a thread of every process, with a process group of its own."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from mova_engine.distributed.collectives import open_cpu_group
from mova_engine.distributed.processes import Processes


class Background:
    """Runs jobs that all processes begin in the same order; `group` is theirs alone, on the CPU."""

    def __init__(self, processes: Processes, timeout_s: float | None) -> None:
        """timeout_s: after which a process that waits for another in a job gives up; None: there are no jobs."""
        self.group = None
        if timeout_s is not None and processes.launch.world > 1:
            self.group = open_cpu_group(timedelta(seconds=timeout_s)).process_group
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], Any]) -> None:
        """Begin a job; the one before must have been waited for."""
        self._thread = threading.Thread(target=self._run, args=(job,), name="background", daemon=True)
        self._thread.start()

    def wait(self) -> Any:
        """The result of the job under way, None without one; raises what it raised."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread, error, result = None, self._error, self._result
        self._error = self._result = None
        if error is not None:
            raise error
        return result

    def finish(self) -> None:
        """Let the job under way come to its end, whatever it be."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, job: Callable[[], Any]) -> None:
        try:
            self._result = job()
        except BaseException as error:
            self._error = error
