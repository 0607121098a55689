"""Starts several processes of `mova encode` on this machine, each with its share of the clips."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mova_engine.distributed.processes import read_launch
from mova_engine.distributed.stop_signals import ended_at_once
from mova_engine.errors import MovaError


def run_workers(settings: Sequence[str]) -> int:
    """Run `mova encode` once with each of `settings`, YAML files' contents, all at once; returns the worst status.

    The first one shows its progress; what the others say to stderr follows when they have ended. If this process is
    stopped, so are they. Raises MovaError if torchrun divides the clips already.
    """
    if read_launch().world > 1:
        raise MovaError("--workers and torchrun both divide the clips: leave --workers out, or start one process")
    with ended_at_once(lambda: "the same command goes on"), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        said = [None, *(stack.enter_context(tempfile.TemporaryFile("w+")) for _ in settings[1:])]
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for number, (text, errors) in enumerate(zip(settings, said, strict=True)):
                file = folder / f"{number}.yaml"
                file.write_text(text, encoding="utf-8")
                workers.append(subprocess.Popen(_command(file), stderr=errors, stdin=subprocess.DEVNULL))
            statuses = [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.terminate()
            for worker in workers:
                worker.wait()
        for errors in said[1:]:
            if errors is not None:
                errors.seek(0)
                sys.stderr.write(errors.read())
    lost = next((status for status in statuses if status < 0), 0)
    if lost:
        raise MovaError(
            f"a process that encodes was ended by signal {-lost} (out of memory?): the same command goes on"
        )
    return max(statuses)


def _command(settings: Path) -> list[str]:
    """The command of one process."""
    return [sys.executable, "-m", "mova_engine", "encode", "--config", str(settings)]
