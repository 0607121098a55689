"""Servers of the engine in processes of their own."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar


class RunningServer:
    """A running server. url: its address. lines: what it has printed so far."""

    def __init__(self, process: subprocess.Popen, lines: list[str]) -> None:
        self.process, self.lines = process, lines
        self.url = re.search(r"http://\S+?:\d+", lines[-1])[0]

    def kill(self) -> None:
        """SIGKILL: nothing is finished or said."""
        self.process.kill()
        self.process.wait()


class _Asked(Protocol):
    def answers(self) -> None:
        """OSError as long as there is no answer."""


Server = TypeVar("Server", bound=_Asked)


@contextmanager
def started(words: Sequence[str], make: Callable[[subprocess.Popen, list[str]], Server]) -> Iterator[Server]:
    """Start a command of the engine that serves, and wait until it answers; ended by SIGTERM. make: of its process, and
    the lines up to that with its address. AssertionError, with what it says, if it ends before.
    """
    command = [sys.executable, "-m", "mova_engine", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("serving on"):
                break
        else:
            raise AssertionError("".join(lines))
        server = make(process, lines)
        # What it says later is read on, or it would wait for a reader.
        threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True).start()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                server.answers()
                break
            except OSError:
                time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
