"""The lock that keeps two runs from using the same folder.

It is a POSIX lock on `RUN/.mova_lock`, which the system releases when the process ends for whatever reason, and which
network file systems support. Some file systems lock only within one machine or not at all; for those the file also
holds host and process id, and its modification time is renewed while the run lives.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mova_engine.errors import MovaError
from mova_engine.train.elastic import may_restart

LOCK = ".mova_lock"
# Seconds between renewals of the modification time, and the age at which a run on another machine counts as dead.
BEAT_S, STALE_S = 15.0, 90.0
_TAKEN = (errno.EACCES, errno.EAGAIN)
# Seconds between attempts to take a lock that is waited for.
LOOK_S = 0.5
log = logging.getLogger(__name__)


class _InUse(MovaError):
    """Another process holds the lock."""


def patience_of_a_restart() -> float:
    """How long a run waits for the lock: where the launcher restarts processes, the first process of the attempt before
    may still be ending, or its machine is gone and its lock not yet stale.
    """
    return STALE_S + BEAT_S if may_restart() else 0.0


class RunLock:
    """The lock of a run's folder, held from its creation to `release`. Raises MovaError if another process holds it.

    now: the time in seconds by the file system's clock, to which modification times are compared. patience_s: how long
    to wait for another process to release it, or to be silent for STALE_S.
    """

    def __init__(self, folder: Path, now: float, patience_s: float = 0.0) -> None:
        self.path = folder / LOCK
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            self._take_within(patience_s, now)
        except BaseException:
            os.close(self._file)
            raise
        self._done = threading.Event()
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def release(self) -> None:
        """Release the lock."""
        self._done.set()
        with suppress(OSError):
            self._write({})
        os.close(self._file)

    def _take_within(self, patience_s: float, now: float) -> None:
        began, told = time.monotonic(), False
        while True:
            waited = time.monotonic() - began
            try:
                self._take(now + waited)
                return
            except _InUse as error:
                if waited >= patience_s:
                    raise
                if not told:
                    log.warning("%s; waiting up to %.0f s for it to end", error, patience_s)
                told = True
            time.sleep(LOOK_S)

    def _take(self, now: float) -> None:
        holder, here = self._holder(), socket.gethostname()
        silent = now - os.fstat(self._file).st_mtime
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alive = bool(holder) and holder.get("host") != here and silent < STALE_S
        except OSError as error:
            if error.errno in _TAKEN:
                alive = True
            elif holder.get("host") == here:  # a file system without locks
                alive = _lives(holder.get("pid"))
            else:
                alive = bool(holder) and silent < STALE_S
        if alive:
            raise _InUse(self._in_use(holder, here, silent))
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._write({"host": here, "pid": os.getpid(), "since": since})

    def _in_use(self, holder: dict, here: str, silent: float) -> str:
        """The error message that the folder is in use. silent: seconds since the file was last renewed."""
        host = holder.get("host", "an unknown machine")
        who = f"process {holder.get('pid', '?')} on {host} trains there since {holder.get('since', '?')}"
        wait = (
            "" if host == here else f" (last sign of life {silent:.0f} s ago; {STALE_S:.0f} s after its end it is free)"
        )
        return f"{self.path.parent} is in use: {who}{wait}; stop that run, or give another --out"

    def _holder(self) -> dict:
        text = os.pread(self._file, 4096, 0)
        try:
            content = json.loads(text or b"{}")
            if isinstance(content, dict) and not content.keys() - {"host", "pid", "since"}:
                return content
        except ValueError:
            if not text.strip(b"\0"):  # zeros: the machine lost power while the file was written
                return {}
        raise MovaError(f"{self.path} is no lock of a run: move it away, or give another --out")

    def _write(self, content: dict) -> None:
        data = json.dumps(content).encode()
        os.pwrite(self._file, data, 0)
        os.ftruncate(self._file, len(data))

    def _beat(self) -> None:
        while not self._done.wait(BEAT_S):
            with suppress(OSError):
                os.utime(self._file, (time.time(), time.time()))


def _lives(pid: object) -> bool:
    """Whether a process with this id exists on this machine."""
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
