"""Heartbeat watchdog over torchrun's store: detects dead, hung and failed ranks and aborts the run with the culprit.

A thread of every rank writes a heartbeat with the rank's progress to the store. Rank 0 decides: which rank stopped
sending, which reported a failure, and, where no rank makes progress, which one is behind. All ranks receive the
verdict; if rank 0 itself stops sending, the others decide so. A rank whose main thread does not end by itself after a
verdict, whatever it waits for, is ended.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NamedTuple, NoReturn

from torch.distributed import TCPStore

from mova_engine.distributed.collectives import Group
from mova_engine.distributed.processes import Launch
from mova_engine.errors import MovaError

# Seconds between signs of life.
HEARTBEAT_INTERVAL_S = 0.5
# Silence that counts once a process has lost its connection to another; a busy machine may delay a sign of life.
HEARTBEAT_TIMEOUT_S = 4.0
# How long a main thread that has lost another process waits for the verdict, and how long one may take to end after it.
VERDICT_TIMEOUT_S = 20.0
ABORT_GRACE_S = 5.0
STATUS = 2

RUNNING, LOST, FAILED, STOPPED, DONE = "running", "lost", "failed", "stopped", "done"
REMEDY = "the same command goes on from the last checkpoint"


@dataclass
class Heartbeat:
    """What a process says of itself: mark grows with every stage and exchange; watched: a stage that ends soon."""

    beat: int = 0
    mark: tuple[int, int] = (0, 0)
    stage: str = "starting"
    watched: bool = False
    state: str = RUNNING
    reason: str = ""
    host: str = ""
    # Whether it knows the verdict.
    told: bool = False


@dataclass
class PeerState:
    """A process's last sign, and since when beat and mark are what they are, by this process's clock."""

    sign: Heartbeat
    beat_since: float
    mark_since: float


class _Verdict(NamedTuple):
    """The error message, and the rank that reports it."""

    text: str
    speaker: int


class Watch:
    """One process's part. `at` tells where the main thread is; within `guard` errors are told and explained.

    timeout_s: silence or standstill after which a process is given up. remedy: what a verdict tells the user to do.
    """

    def __init__(
        self,
        launch: Launch,
        timeout_s: float,
        exit_process: Callable[[int], object] = os._exit,
        remedy: str = REMEDY,
    ) -> None:
        self.launch, self.timeout, self._exit, self._remedy = launch, timeout_s, exit_process, remedy
        self._sign = Heartbeat(host=socket.gethostname())
        self._seen: dict[int, PeerState] = {}
        self._verdict: _Verdict | None = None
        # Since when it is known that somebody lost a connection, or was asked to end.
        self._lost_since: float | None = None
        # A signal may arrive while the main thread holds the lock.
        self._decided, self._closing, self._lock = threading.Event(), threading.Event(), threading.RLock()
        self._thread = None
        if launch.world > 1:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            # A connection of its own: one that waits in the process group's would delay signs of life.
            self._store = TCPStore(
                address, port, None, False, timedelta(seconds=VERDICT_TIMEOUT_S), wait_for_workers=False
            )
            run = (os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            self._prefix = "/".join(("mova_watch", *run))
            self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)
            self._tell()
            self._thread.start()

    def at(self, stage: str, watched: bool = True) -> None:
        """The main thread has come to `stage`. watched: standing still there is a failure."""
        self._sign.mark = (self._sign.mark[0] + 1, 0)
        self._sign.stage, self._sign.watched = stage, watched

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Errors of the block are told to the other processes, or explained by what happened in them."""
        try:
            yield
        except (MovaError, OSError) as error:
            told = self._failed_here(error)
            if told is error:
                raise
            raise told from error
        except RuntimeError as error:
            # What a process sees of another's end is a collective that fails.
            told = self._explained(error)
            if told is None:
                raise
            raise told from error

    def _explained(self, error: RuntimeError) -> MovaError | None:
        """What happened elsewhere that made a collective fail here with `error`; None where nothing did.

        In all processes but the one that reports the error, this ends the process instead (SystemExit).
        """
        if self._thread is None:
            return None
        self._change(LOST, str(error).splitlines()[0] if str(error) else type(error).__name__)
        if not self._decided.wait(VERDICT_TIMEOUT_S):
            return None
        if self._verdict.speaker == self.launch.rank:
            return MovaError(self._verdict.text)
        raise SystemExit(STATUS)

    def _failed_here(self, error: MovaError | OSError) -> MovaError | OSError:
        """This process is about to end with an error of its own, which the others need not guess then; returns it with
        this process's number. Where another process has met the same or an earlier one, it ends the process instead.
        """
        if self._thread is None:
            return error
        self._change(FAILED, str(error))
        if self._decided.wait(VERDICT_TIMEOUT_S) and self._verdict.speaker != self.launch.rank:
            raise SystemExit(STATUS)
        return MovaError(f"rank {self.launch.rank}: {error}") if self.launch.rank else error

    def stop(self, number: int, frame: object = None) -> NoReturn:
        """For a program that does not stop by itself: what to do at a signal that asks it to end.

        A launcher that has seen one process die sends it to the others: these first say who died.
        """
        if self._thread is not None:
            self._change(STOPPED, f"signal {number}")
            if self._decided.wait(2 * HEARTBEAT_TIMEOUT_S):
                if self._verdict.speaker == self.launch.rank:
                    raise MovaError(self._verdict.text)
                raise SystemExit(STATUS)
        raise SystemExit(128 + number)

    def close(self) -> None:
        """Done: silence from here on is no failure."""
        if self._thread is not None:
            if self._sign.state == RUNNING:
                self._change(DONE, "")
            self._closing.set()
            self._thread.join(HEARTBEAT_INTERVAL_S * 4)
            if self._verdict is not None and self.launch.rank == 0:
                self._wait_for_the_others()

    def _wait_for_the_others(self) -> None:
        """Until all that live have read the verdict: without a launcher's, the store ends with this process."""
        until, others = time.monotonic() + ABORT_GRACE_S, set(range(1, self.launch.world))
        with suppress(RuntimeError):
            while others and time.monotonic() < until:
                for rank in tuple(others):
                    self._look_at(rank)
                    seen = self._seen.get(rank)
                    if seen is None or seen.sign.told or time.monotonic() - seen.beat_since > HEARTBEAT_TIMEOUT_S:
                        others.discard(rank)
                time.sleep(HEARTBEAT_INTERVAL_S / 10)

    def _change(self, state: str, reason: str) -> None:
        self._sign.state, self._sign.reason = state, reason
        with suppress(RuntimeError):
            self._tell()

    def _loop(self) -> None:
        while not self._closing.wait(HEARTBEAT_INTERVAL_S):
            try:
                self._sign.beat += 1
                self._tell()
                self._judge()
            except RuntimeError:
                # The store lives in the launcher, or without one in the first process.
                gone = "rank 0 or the launcher is gone: its store does not answer. All processes end"
                self._verdict = self._verdict or _Verdict(gone, 1)
            if self._verdict is not None:
                self._sign.told = True
                with suppress(RuntimeError):
                    self._tell()
                self._end()
                return

    def _tell(self) -> None:
        sign = self._sign
        sign.mark = (sign.mark[0], Group.calls)
        with self._lock:
            self._store.set(f"{self._prefix}/{self.launch.rank}", json.dumps(asdict(sign)))

    def _judge(self) -> None:
        verdict = f"{self._prefix}/verdict"
        with self._lock:
            if self._store.check([verdict]):
                self._verdict = _Verdict(*json.loads(self._store.get(verdict)))
                return
        # All ranks watch rank 0, and rank 0 watches all of them.
        ranks = range(self.launch.world) if self.launch.rank == 0 else (0,)
        for rank in ranks:
            self._look_at(rank)
        signs = (self._sign, *(seen.sign for seen in self._seen.values()))
        if self._lost_since is None and any(sign.state in (LOST, STOPPED) for sign in signs):
            self._lost_since = time.monotonic()
        found = self._silent() or (self._failed() if self.launch.rank == 0 else None)
        if found is None and self.launch.rank == 0:
            found = self._behind()
        if found is not None:
            with self._lock:
                # The first to say so is believed by all.
                kept = self._store.compare_set(verdict, "", json.dumps(found))
            self._verdict = _Verdict(*json.loads(kept))

    def _look_at(self, rank: int) -> None:
        key = f"{self._prefix}/{rank}"
        with self._lock:
            if not self._store.check([key]):
                return
            said = json.loads(self._store.get(key))
        sign, now, before = Heartbeat(**{**said, "mark": tuple(said["mark"])}), time.monotonic(), self._seen.get(rank)
        if before is None:
            self._seen[rank] = PeerState(sign, now, now)
            return
        self._seen[rank] = PeerState(
            sign,
            before.beat_since if before.sign.beat == sign.beat else now,
            before.mark_since if before.sign.mark == sign.mark else now,
        )

    def _silent(self) -> _Verdict | None:
        """A process that gives no sign of life: for the whole timeout, or for less where somebody lost it."""
        bound, now = (
            self.timeout if self._lost_since is None else min(HEARTBEAT_TIMEOUT_S, self.timeout),
            time.monotonic(),
        )
        gone = {
            rank: now - seen.beat_since
            for rank, seen in self._seen.items()
            if seen.sign.state in (RUNNING, LOST, STOPPED) and now - seen.beat_since > bound
        }
        if not gone:
            return None
        rank = max(gone, key=gone.get)
        sign = self._seen[rank].sign
        return _about(
            rank,
            f"rank {rank} on {sign.host} died or was stopped: no sign of life for {gone[rank]:.0f} s, the last at "
            f"'{sign.stage}'. All processes end; {self._remedy}",
        )

    def _lost(self) -> list[PeerState]:
        return [seen for seen in self._seen.values() if seen.sign.state == LOST]

    def _failed(self) -> _Verdict | None:
        for rank, seen in self._seen.items():
            if seen.sign.state == FAILED:
                text = f"rank {rank} on {seen.sign.host} failed at '{seen.sign.stage}': {seen.sign.reason}"
                return _Verdict(text, speaker=rank)
        return None

    def _behind(self) -> _Verdict | None:
        """When no rank makes progress: the rank that is furthest behind."""
        now = time.monotonic()
        if len(self._seen) < self.launch.world or any(seen.sign.state == DONE for seen in self._seen.values()):
            return None
        lost = self._lost()
        standing = min(now - seen.mark_since for seen in self._seen.values())
        if standing <= (HEARTBEAT_TIMEOUT_S if lost else self.timeout):
            return None
        if lost and now - self._lost_since <= 2 * HEARTBEAT_TIMEOUT_S:
            # All may have stood for long in one stage when a process died; its silence shows first.
            return None
        rank, seen = min(self._seen.items(), key=lambda item: item[1].sign.mark)
        if not lost and not seen.sign.watched:
            return None
        if now - seen.beat_since > HEARTBEAT_TIMEOUT_S / 2:
            # It stands because it is gone, which the next looks will show.
            return None
        if seen.sign.mark == max(other.sign.mark for other in self._seen.values()):
            reason = f": {lost[0].sign.reason}" if lost else ""
            return _about(rank, f"all processes stand at '{seen.sign.stage}' and none of them is behind{reason}")
        return _about(
            rank,
            f"rank {rank} on {seen.sign.host} hangs: at '{seen.sign.stage}' for {now - seen.mark_since:.0f} s, while "
            f"the others wait. All processes end; {self._remedy}",
        )

    def _end(self) -> None:
        """See to it that this process ends: by itself, or else from here."""
        self._decided.set()
        if self._closing.wait(ABORT_GRACE_S):
            return
        if self._verdict.speaker == self.launch.rank:
            sys.stderr.write(f"error: {self._verdict.text}\n")
            sys.stderr.flush()
        self._exit(STATUS)


def _about(rank: int, text: str) -> _Verdict:
    """Rank 0 reports, unless it is the one that died."""
    return _Verdict(text, speaker=1 if rank == 0 else 0)
