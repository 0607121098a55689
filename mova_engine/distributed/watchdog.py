"""Heartbeat watchdog over torchrun's store: detects dead, hung and failed ranks, and ends the run with an error that
names the rank.

A thread of every rank writes a heartbeat with the rank's progress to the store. Rank 0 reads all heartbeats and writes
a verdict when a rank has stopped sending, has reported a failure, or, if no rank makes progress, is furthest behind.
All ranks read the verdict. If rank 0 itself stops sending, the other ranks write it. After a verdict the watchdog ends
a process whose main thread has not ended within ABORT_GRACE_S.
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

from torch.distributed import PrefixStore, Store, TCPStore

from mova_engine.distributed.collectives import Group
from mova_engine.distributed.launch_store import has_launch_store, launch_store
from mova_engine.distributed.processes import Launch
from mova_engine.errors import MovaError

# Seconds between heartbeats.
HEARTBEAT_INTERVAL_S = 0.5
# A rank without a heartbeat for this long is dead, if another rank's collective has failed. A busy machine may delay
# one.
HEARTBEAT_TIMEOUT_S = 4.0
# How long a main thread whose collective has failed waits for the verdict.
VERDICT_TIMEOUT_S = 20.0
# How long a main thread may take to end after the verdict.
ABORT_GRACE_S = 5.0
# Exit status after a verdict.
STATUS = 2

# States of a process. LOST: a collective failed. STOPPED: a signal asked it to end.
RUNNING, LOST, FAILED, STOPPED, DONE = "running", "lost", "failed", "stopped", "done"
REMEDY = "the same command resumes from the last checkpoint"


@dataclass
class Heartbeat:
    """What a process reports about itself.

    beat: grows with every heartbeat. mark: its progress, (stages begun, collectives started). stage: what the main
    thread does. watched: whether the stage must end within the timeout. state: RUNNING, LOST, ...; reason: of the
    state. knows_verdict: whether the process has read the verdict.
    """

    beat: int = 0
    mark: tuple[int, int] = (0, 0)
    stage: str = "starting"
    watched: bool = False
    state: str = RUNNING
    reason: str = ""
    host: str = ""
    knows_verdict: bool = False


@dataclass
class PeerState:
    """The last heartbeat of a process, and the times at which its `beat` and its `mark` last changed, in seconds by
    this process's monotonic clock.
    """

    heartbeat: Heartbeat
    beat_since: float
    mark_since: float


class _Verdict(NamedTuple):
    """Why the run ends. text: the error message. reporter: the one rank that prints it."""

    text: str
    reporter: int


class Watch:
    """The watchdog of one process. The main thread calls `at` when it begins a stage, and runs its work in `guard`.

    timeout_s: seconds without a heartbeat, or without progress, after which the run is ended. exit_process: called with
    the exit status to end a process whose main thread does not end. remedy: the advice at the end of a verdict's text.
    """

    def __init__(
        self,
        launch: Launch,
        timeout_s: float,
        exit_process: Callable[[int], object] = os._exit,
        remedy: str = REMEDY,
    ) -> None:
        self.launch, self.timeout, self._exit, self._remedy = launch, timeout_s, exit_process, remedy
        self._own = Heartbeat(host=socket.gethostname())
        self._peers: dict[int, PeerState] = {}
        self._verdict: _Verdict | None = None
        # When this process first saw that a process is LOST or STOPPED.
        self._lost_since: float | None = None
        # Reentrant: a signal handler may need the lock while the main thread holds it.
        self._decided, self._closing, self._lock = threading.Event(), threading.Event(), threading.RLock()
        self._thread = None
        if launch.world > 1:
            self._store = _open_store(launch)
            self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)
            self._publish()
            self._thread.start()

    def at(self, stage: str, watched: bool = True) -> None:
        """Report that the main thread begins `stage`. watched: no progress within the timeout is then a failure."""
        self._own.mark = (self._own.mark[0] + 1, 0)
        self._own.stage, self._own.watched = stage, watched

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Within the block, a MovaError or OSError is reported to the other processes. A RuntimeError, such as that of
        a collective whose peer has died, is replaced by a MovaError with its cause, if another process caused it.

        Only one process raises the error; the others raise SystemExit with STATUS.
        """
        try:
            yield
        except (MovaError, OSError) as error:
            reported = self._report_failure(error)
            if reported is error:
                raise
            raise reported from error
        except RuntimeError as error:
            cause = self._find_cause(error)
            if cause is None:
                raise
            raise cause from error

    def _wait_for_verdict(self, timeout_s: float) -> _Verdict | None:
        return self._verdict if self._decided.wait(timeout_s) else None

    def _find_cause(self, error: RuntimeError) -> MovaError | None:
        """Return the verdict on the process that made a collective fail here with `error`; None if there is none in
        time. Raises SystemExit in all processes except the one that reports the verdict.
        """
        if self._thread is None:
            return None
        self._change(LOST, str(error).splitlines()[0] if str(error) else type(error).__name__)
        verdict = self._wait_for_verdict(VERDICT_TIMEOUT_S)
        if verdict is None:
            return None
        if verdict.reporter == self.launch.rank:
            return MovaError(verdict.text)
        raise SystemExit(STATUS)

    def _report_failure(self, error: MovaError | OSError) -> MovaError | OSError:
        """Publish this process's own error to the others; return it, with this process's rank if that is not 0.

        Raises SystemExit if the verdict is on another process: that one reports its error.
        """
        if self._thread is None:
            return error
        self._change(FAILED, str(error))
        verdict = self._wait_for_verdict(VERDICT_TIMEOUT_S)
        if verdict is not None and verdict.reporter != self.launch.rank:
            raise SystemExit(STATUS)
        return MovaError(f"rank {self.launch.rank}: {error}") if self.launch.rank else error

    def stop(self, number: int, frame: object = None) -> NoReturn:
        """Handler of signal `number` for a program without its own orderly stop: ends the process.

        A launcher sends the signal to all other processes when it has seen one die. Therefore this waits first for a
        verdict, which names the dead process.
        """
        if self._thread is not None:
            self._change(STOPPED, f"signal {number}")
            verdict = self._wait_for_verdict(2 * HEARTBEAT_TIMEOUT_S)
            if verdict is not None:
                if verdict.reporter == self.launch.rank:
                    raise MovaError(verdict.text)
                raise SystemExit(STATUS)
        raise SystemExit(128 + number)

    def close(self) -> None:
        """End the watchdog of this process. From now on missing heartbeats are no failure."""
        if self._thread is not None:
            if self._own.state == RUNNING:
                self._change(DONE, "")
            self._closing.set()
            self._thread.join(HEARTBEAT_INTERVAL_S * 4)
            if self._verdict is not None and self.launch.rank == 0:
                self._wait_until_read()

    def _wait_until_read(self) -> None:
        """Wait until all living ranks have read the verdict: without a launcher, the store ends with this process."""
        until, others = time.monotonic() + ABORT_GRACE_S, set(range(1, self.launch.world))
        with suppress(RuntimeError):
            while others and time.monotonic() < until:
                for rank in tuple(others):
                    self._read_peer(rank)
                    peer = self._peers.get(rank)
                    if (
                        peer is None
                        or peer.heartbeat.knows_verdict
                        or time.monotonic() - peer.beat_since > HEARTBEAT_TIMEOUT_S
                    ):
                        others.discard(rank)
                time.sleep(HEARTBEAT_INTERVAL_S / 10)

    def _change(self, state: str, reason: str) -> None:
        self._own.state, self._own.reason = state, reason
        with suppress(RuntimeError):
            self._publish()

    def _loop(self) -> None:
        while not self._closing.wait(HEARTBEAT_INTERVAL_S):
            try:
                self._own.beat += 1
                self._publish()
                self._check_peers()
            except RuntimeError:
                # The store is in the launcher's process, or without a launcher in rank 0's.
                gone = "rank 0 or the launcher is gone: its store does not answer. All processes end"
                self._verdict = self._verdict or _Verdict(gone, 1)
            if self._verdict is not None:
                self._own.knows_verdict = True
                with suppress(RuntimeError):
                    self._publish()
                self._end(self._verdict)
                return

    def _publish(self) -> None:
        """Write this process's heartbeat to the store."""
        self._own.mark = (self._own.mark[0], Group.calls)
        with self._lock:
            self._store.set(str(self.launch.rank), json.dumps(asdict(self._own)))

    def _check_peers(self) -> None:
        """Read the verdict, or read the heartbeats of other ranks and write a verdict if one is due."""
        with self._lock:
            if self._store.check(["verdict"]):
                self._verdict = _Verdict(*json.loads(self._store.get("verdict")))
                return
        # All ranks watch rank 0, and rank 0 watches all of them.
        ranks = range(self.launch.world) if self.launch.rank == 0 else (0,)
        for rank in ranks:
            self._read_peer(rank)
        heartbeats = (self._own, *(peer.heartbeat for peer in self._peers.values()))
        if self._lost_since is None and any(each.state in (LOST, STOPPED) for each in heartbeats):
            self._lost_since = time.monotonic()
        found = self._find_dead() or (self._find_failed() if self.launch.rank == 0 else None)
        if found is None and self.launch.rank == 0:
            found = self._find_stalled()
        if found is not None:
            with self._lock:
                # The first verdict that is written counts.
                kept = self._store.compare_set("verdict", "", json.dumps(found))
            self._verdict = _Verdict(*json.loads(kept))

    def _read_peer(self, rank: int) -> None:
        """Read the heartbeat of `rank`, if it has written one."""
        key = str(rank)
        with self._lock:
            if not self._store.check([key]):
                return
            fields = json.loads(self._store.get(key))
        heartbeat = Heartbeat(**{**fields, "mark": tuple(fields["mark"])})
        now, before = time.monotonic(), self._peers.get(rank)
        if before is None:
            self._peers[rank] = PeerState(heartbeat, now, now)
            return
        self._peers[rank] = PeerState(
            heartbeat,
            before.beat_since if before.heartbeat.beat == heartbeat.beat else now,
            before.mark_since if before.heartbeat.mark == heartbeat.mark else now,
        )

    def _find_dead(self) -> _Verdict | None:
        """The verdict on a rank without heartbeats: for the whole timeout, or for HEARTBEAT_TIMEOUT_S if a process is
        LOST or STOPPED.
        """
        limit = self.timeout if self._lost_since is None else min(HEARTBEAT_TIMEOUT_S, self.timeout)
        now = time.monotonic()
        dead = {
            rank: now - peer.beat_since
            for rank, peer in self._peers.items()
            if peer.heartbeat.state in (RUNNING, LOST, STOPPED) and now - peer.beat_since > limit
        }
        if not dead:
            return None
        rank = max(dead, key=lambda rank: dead[rank])
        last = self._peers[rank].heartbeat
        return _verdict_on(
            rank,
            f"rank {rank} on {last.host} died or was stopped: no heartbeat for {dead[rank]:.0f} s, the last at "
            f"'{last.stage}'. All processes end; {self._remedy}",
        )

    def _find_failed(self) -> _Verdict | None:
        """The verdict on a rank that has reported an error; that rank prints it."""
        for rank, peer in self._peers.items():
            last = peer.heartbeat
            if last.state == FAILED:
                return _Verdict(f"rank {rank} on {last.host} failed at '{last.stage}': {last.reason}", reporter=rank)
        return None

    def _find_stalled(self) -> _Verdict | None:
        """If no rank makes progress: the verdict on the rank that is furthest behind."""
        now = time.monotonic()
        peers = self._peers
        if len(peers) < self.launch.world or any(peer.heartbeat.state == DONE for peer in peers.values()):
            return None
        lost = [peer.heartbeat for peer in peers.values() if peer.heartbeat.state == LOST]
        stalled_s = min(now - peer.mark_since for peer in peers.values())
        if stalled_s <= (HEARTBEAT_TIMEOUT_S if lost else self.timeout):
            return None
        if lost and self._lost_since is not None and now - self._lost_since <= 2 * HEARTBEAT_TIMEOUT_S:
            # A process may have died while all were long in one stage: its missing heartbeats must be noticed first.
            return None
        rank, peer = min(peers.items(), key=lambda item: item[1].heartbeat.mark)
        last = peer.heartbeat
        if not lost and not last.watched:
            return None
        if now - peer.beat_since > HEARTBEAT_TIMEOUT_S / 2:
            # Probably dead: `_find_dead` will say so.
            return None
        if last.mark == max(other.heartbeat.mark for other in peers.values()):
            reason = f": {lost[0].reason}" if lost else ""
            return _verdict_on(rank, f"no process makes progress, all are equally far, at '{last.stage}'{reason}")
        return _verdict_on(
            rank,
            f"rank {rank} on {last.host} hangs: at '{last.stage}' for {now - peer.mark_since:.0f} s, while "
            f"the others wait. All processes end; {self._remedy}",
        )

    def _end(self, verdict: _Verdict) -> None:
        """Let the main thread end the process; if it does not within ABORT_GRACE_S, end the process from here."""
        self._decided.set()
        if self._closing.wait(ABORT_GRACE_S):
            return
        if verdict.reporter == self.launch.rank:
            sys.stderr.write(f"error: {verdict.text}\n")
            sys.stderr.flush()
        self._exit(STATUS)


def _open_store(launch: Launch) -> Store:
    """A connection of its own to the store: a wait on the process group's connection would delay heartbeats."""
    if has_launch_store():
        store = launch_store(launch.rank, launch.world, VERDICT_TIMEOUT_S)
    else:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=VERDICT_TIMEOUT_S)
        store = TCPStore(address, port, None, False, timeout, wait_for_workers=False)
    return PrefixStore("mova_watch", store)


def _verdict_on(rank: int, text: str) -> _Verdict:
    """The verdict on `rank`, which rank 0 reports; rank 1 does if the verdict is on rank 0."""
    return _Verdict(text, reporter=1 if rank == 0 else 0)
