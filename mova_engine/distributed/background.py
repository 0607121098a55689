"""A background thread in every process that runs one job at a time, with its own CPU process group."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from mova_engine.distributed.collectives import open_cpu_group
from mova_engine.distributed.processes import Processes


class Background:
    """Runs jobs that all processes start in the same order. `group`: a CPU process group for the jobs' collectives;
    None for one process.
    """

    def __init__(self, processes: Processes, timeout_s: float | None) -> None:
        """timeout_s: timeout of the jobs' collectives, in seconds; None: no job will be started, so no group is
        made.
        """
        self.group: dist.ProcessGroup | None = None
        if timeout_s is not None and processes.launch.world > 1:
            self.group = open_cpu_group(timedelta(seconds=timeout_s)).process_group
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], Any]) -> None:
        """Start `job`. The previous job must have been collected with `wait`."""
        self._thread = threading.Thread(target=self._run, args=(job,), name="background", daemon=True)
        self._thread.start()

    def wait(self) -> Any:
        """Wait for the running job and return its result, or raise its exception. None if no job is running."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread, error, result = None, self._error, self._result
        self._error = self._result = None
        if error is not None:
            raise error
        return result

    def finish(self) -> None:
        """Wait until the running job has ended. Its result or exception remains for `wait`."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, job: Callable[[], Any]) -> None:
        try:
            self._result = job()
        except BaseException as error:
            self._error = error
