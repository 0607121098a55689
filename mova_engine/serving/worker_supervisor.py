"""Starts worker processes and keeps them running: restarts with backoff, ends what hangs, takes back what they held.

It also expires jobs, and removes files of none.
"""

import logging
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mova_engine.serving.job_store import JobStore
from mova_engine.serving.store_errors import StoreRefusal
from mova_engine.serving.worker_settings import STOP, WorkerSettings

_LOOK_S, _TIDY_S = 0.25, 60.0
# Seconds before a restart: doubled with each one, until a worker has run for _STEADY_S.
_FIRST_WAIT_S, _MOST_WAIT_S, _STEADY_S = 1.0, 60.0, 120.0
# Seconds that a worker has to end in order: a step of a large clip.
_GRACE_S = 60.0
log = logging.getLogger(__name__)


@dataclass
class _Place:
    """A worker's place. starts: how often it was started in a row. at: when to start it."""

    process: subprocess.Popen[bytes] | None = None
    name: str = ""
    since: float = 0.0
    starts: int = 0
    at: float = 0.0
    code: int | None = field(default=None)


class WorkerSupervisor:
    """`count` workers of these settings, each under a name of its own."""

    def __init__(self, store: JobStore, settings: WorkerSettings, count: int, say: Callable[[str], None]) -> None:
        self._store, self._settings, self._say = store, settings, say
        self._places = [_Place() for _ in range(count)]
        self._ending, self._tidied = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)

    def start(self) -> None:
        """Start the workers, and watch over them in a thread."""
        if not self._store.is_shared:
            # The store is locked: whoever worked before is dead, and nothing else may have written files.
            self._store.recover(all_workers=True)
            self._store.sweep(0.0)
        self._thread.start()

    def wait(self) -> None:
        """Until `stop` is called."""
        self._ending.wait()

    def end(self) -> None:
        """Let `wait` return; for handlers of signals."""
        self._ending.set()

    def stop(self) -> None:
        """End all workers in order: what they make goes back to the queue. Those that do not end are killed."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        running = [place for place in self._places if place.process is not None]
        for place in running:
            self._ask(place)
        end = time.monotonic() + _GRACE_S
        for place in running:
            assert place.process is not None
            try:
                place.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                place.process.kill()
                place.process.wait()
        lost = [place.name for place in running if place.process is not None and place.process.returncode]
        self._tried(lambda: self._store.recover(lost))

    def describe(self) -> str | None:
        """Why nothing is made now; None: a worker runs."""
        if any(place.process is not None for place in self._places):
            return None
        return "no worker is running: the server's log says why; they are started again"

    def _ask(self, place: _Place) -> None:
        assert place.process is not None and place.process.stdin is not None
        try:
            place.process.stdin.write(f"{STOP}\n".encode())
            place.process.stdin.flush()
        except OSError:
            return

    def _watch(self) -> None:
        looked = 0.0
        while not self._ending.wait(_LOOK_S):
            now = time.monotonic()
            for place in self._places:
                if place.process is None:
                    if now >= place.at:
                        self._begin(place)
                elif place.process.poll() is not None:
                    self._ended(place)
            if now - looked >= self._store.limits.lease_s / 3:
                looked = now
                self._tried(self._take_back)
            if now - self._tidied >= _TIDY_S:
                self._tidied = now
                self._tried(self._store.expire)
                self._tried(self._store.sweep)

    def _begin(self, place: _Place) -> None:
        place.name = f"{socket.gethostname()}-{secrets.token_hex(6)}"
        command = [sys.executable, "-m", "mova_engine.serving.video_worker"]
        place.process = subprocess.Popen(command, stdin=subprocess.PIPE)
        place.since, place.starts = time.monotonic(), place.starts + 1
        assert place.process.stdin is not None
        try:
            place.process.stdin.write(replace(self._settings, name=place.name).to_line())
            place.process.stdin.flush()
        except OSError:
            return  # it has ended already, which is seen next

    def _ended(self, place: _Place) -> None:
        assert place.process is not None
        code, now = place.process.returncode, time.monotonic()
        if place.process.stdin is not None:
            place.process.stdin.close()
        place.process = None
        if now - place.since > _STEADY_S:
            place.starts = 1
        wait = min(_MOST_WAIT_S, _FIRST_WAIT_S * 2 ** (place.starts - 1))
        place.at = now + wait
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        self._say(f"warning: worker {place.name} ended {how}; the next one starts in {wait:g} s")
        self._tried(lambda: self._store.recover([place.name]))

    def _take_back(self) -> None:
        """What workers held whose heartbeat stopped, here or elsewhere; our own ones are killed."""
        dead = set(self._store.recover())
        for place in self._places:
            if place.name in dead and place.process is not None:
                self._say(f"warning: worker {place.name} gives no sign of life; it is killed")
                place.process.kill()

    def _tried(self, act: Callable[[], object]) -> None:
        try:
            act()
        except StoreRefusal as error:
            self._say(f"warning: {error}")
        except OSError as error:
            log.warning("the store's files: %s", error)
