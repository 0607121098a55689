"""What workers and those who watch over them do with jobs: claim, report, end, and take back what a dead one held.

Whatever a worker says of a job counts only while the job's row names it: one that was taken for dead and wakes up
changes nothing. No lease is a time of day: who watches sees a worker's heartbeats counted up, or not, by its own
monotonic clock.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mova_engine.serving.store_database import StoreDatabase, StoreLimits, job_of
from mova_engine.serving.store_files import StoreFiles
from mova_engine.serving.video_job import CANCELLED, WORKER_LOST, VideoJob

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection, Engine, Row

# Times that a job is begun; a job whose workers died as often ends as `worker_lost`.
MOST_ATTEMPTS = 2
_CANCELLED_WORDS = "the job was cancelled"


class JobWork(StoreDatabase):
    """The side of a store that workers see."""

    def __init__(self, engine: "Engine", files: StoreFiles, limits: StoreLimits) -> None:
        super().__init__(engine, files, limits)
        self._beats: dict[str, tuple[int, float]] = {}

    def register(self, worker: str, host: str, models: Sequence[str]) -> None:
        """Say that a worker is there, and which models it makes clips of."""
        with self._writes() as (connection, _):
            connection.execute(self.sql.delete(self.workers).where(self.workers.c.name == worker))
            values = {"name": worker, "host": host, "models": json.dumps(list(models)), "beat": 0}
            connection.execute(self.sql.insert(self.workers).values(values))

    def beat(self, worker: str) -> bool:
        """A heartbeat. False: the worker was taken for dead, its jobs are no longer its own."""
        with self._writes() as (connection, _):
            counted = (
                self.sql.update(self.workers).where(self.workers.c.name == worker).values(beat=self.workers.c.beat + 1)
            )
            return connection.execute(counted).rowcount == 1

    def leave(self, worker: str) -> None:
        """A worker ends: its jobs go back to the queue, as if it had not begun them."""
        with self._writes() as (connection, version):
            connection.execute(self.sql.delete(self.workers).where(self.workers.c.name == worker))
            held = self.sql.and_(self.c.worker == worker, self.c.status == "in_progress")
            again = {"status": "queued", "worker": None, "stage": "", "eta_s": None, "version": version}
            wanted = self.sql.and_(held, self.c.cancel_asked.is_(False))
            connection.execute(self.sql.update(self.jobs).where(wanted).values(**again, attempts=self.c.attempts - 1))
            rest = connection.execute(self.sql.select(self.jobs).where(held)).all()
            for row in rest:
                self._end(connection, version, row, CANCELLED, _CANCELLED_WORDS)
        self._remove_asked(rest)

    def claim(self, worker: str, models: Sequence[str]) -> VideoJob | None:
        """Begin the next job of these models: of the earliest deadline, then the oldest. None: none waits."""
        waits = self.sql.and_(self.c.status == "queued", self.c.model.in_(list(models)))
        with self._reads() as connection:
            # Most looks find nothing, and write nothing.
            if connection.execute(self.sql.select(self.c.id).where(waits).limit(1)).first() is None:
                return None
        first = self.sql.select(self.c.place).where(waits).order_by(self.due, self.c.place).limit(1)
        with self._writes() as (connection, version):
            place = connection.scalar(first.with_for_update(skip_locked=True))
            return None if place is None else self._begin(connection, version, worker, [place])[0]

    def claim_alike(self, worker: str, job: VideoJob, most: int) -> list[VideoJob]:
        """Begin up to `most` more jobs that can be made in one batch with `job`. A job whose worker died is made alone,
        so that no other one is lost by it.
        """
        key = job.settings.batch_key
        if not key or most < 1 or job.attempts > 1:
            return []
        alike = self.sql.and_(self.c.status == "queued", self.c.model == job.model, self.c.batch_key == key)
        some = (
            self.sql.select(self.c.place)
            .where(alike, self.c.attempts == 0)
            .order_by(self.due, self.c.place)
            .limit(most)
        )
        with self._writes() as (connection, version):
            places = list(connection.scalars(some.with_for_update(skip_locked=True)))
            return self._begin(connection, version, worker, places)

    def _begin(self, connection: "Connection", version: int, worker: str, places: Sequence[int]) -> list[VideoJob]:
        now = self.clock.now()
        values = {
            "status": "in_progress",
            "worker": worker,
            "attempts": self.c.attempts + 1,
            "started_at": self.sql.case((self.c.created_at > now, self.c.created_at), else_=now),
            "version": version,
        }
        begun = (
            self.sql.update(self.jobs).where(self.c.place.in_(list(places)), self.c.status == "queued").values(values)
        )
        rows = connection.execute(begun.returning(*self.c)).all()
        return [job_of(row) for row in sorted(rows, key=lambda row: row.place)]

    def progress(
        self, video: str, worker: str, stage: str, step: int, steps: int, progress: float, eta_s: float | None
    ) -> bool:
        """Say how far a job is; its progress never falls. False: stop, for it was cancelled, deleted or taken away."""
        return video in self.progress_of([video], worker, stage, step, steps, progress, eta_s)

    def progress_of(
        self,
        videos: Sequence[str],
        worker: str,
        stage: str,
        step: int,
        steps: int,
        progress: float,
        eta_s: float | None,
    ) -> set[str]:
        """The same for the jobs of a batch, in one transaction: those with which to go on."""
        percent = max(0, min(99, int(progress)))
        with self._writes() as (connection, version):
            values = {
                "stage": stage,
                "step": step,
                "steps": steps,
                "eta_s": eta_s,
                "progress": self.sql.case((self.c.progress < percent, percent), else_=self.c.progress),
                "version": version,
            }
            mine = self.sql.and_(self.c.worker == worker, self.c.status == "in_progress")
            told = self.sql.update(self.jobs).where(self.c.id.in_(list(videos)), mine).values(values)
            rows = connection.execute(told.returning(self.c.id, self.c.cancel_asked)).all()
        return {row.id for row in rows if not row.cancel_asked}

    def rewritten(self, job: VideoJob, worker: str, enhanced: str | None, facts: Mapping[str, Any]) -> VideoJob:
        """Keep what became of a job's prompt: its other form, None if it stays the user's, and facts to tell. Return
        the job with them.
        """
        settings = replace(job.settings, enhanced_prompt=enhanced)
        with self._writes() as (connection, version):
            values = {"settings": settings.to_json(), "facts": json.dumps(facts), "version": version}
            connection.execute(self.sql.update(self.jobs).where(self._held(job.id, worker)).values(values))
        return replace(job, settings=settings, facts=facts)

    def wanted_of(self, worker: str) -> set[str]:
        """The jobs of a worker with which it should go on."""
        held = self.sql.and_(self.c.worker == worker, self.c.status == "in_progress", self.c.cancel_asked.is_(False))
        with self._reads() as connection:
            return set(connection.scalars(self.sql.select(self.c.id).where(held)))

    def finish(self, video: str, worker: str, facts: Mapping[str, Any]) -> bool:
        """A job's files are all there. False: it was cancelled, deleted or taken away meanwhile."""
        with self._writes() as (connection, version):
            row = connection.execute(self.sql.select(self.jobs).where(self._held(video, worker))).first()
            if row is None:
                return False
            if not row.cancel_asked:
                told = json.dumps({**json.loads(row.facts), **facts})
                self._end(connection, version, row, None, None, {"progress": 100, "facts": told})
                return True
            self._end(connection, version, row, CANCELLED, _CANCELLED_WORDS)
        self._remove_asked([row])
        return False

    def fail(self, video: str, worker: str, code: str, message: str) -> bool:
        """A job cannot be made. False: it was taken away."""
        with self._writes() as (connection, version):
            row = connection.execute(self.sql.select(self.jobs).where(self._held(video, worker))).first()
            if row is None:
                return False
            self._end(connection, version, row, code, message)
        self._remove_asked([row])
        return True

    def stopped(self, video: str, worker: str) -> bool:
        """A worker has stopped a job that was cancelled or deleted."""
        return self.fail(video, worker, CANCELLED, _CANCELLED_WORDS)

    def recover(self, lost: Sequence[str] = (), *, all_workers: bool = False) -> list[str]:
        """Take back what dead workers held: back to the queue, once, then failed as `worker_lost`; and finish what was
        being deleted. Return the names of the workers that are lost.

        lost: workers known to be dead. all_workers: all of them are, as when a server starts that has the store alone.
        Others are lost when their heartbeat has not changed for `lease_s` while this object was asked.
        """
        now = time.monotonic()
        with self._reads() as connection:
            beats = {
                row.name: row.beat
                for row in connection.execute(self.sql.select(self.workers.c.name, self.workers.c.beat))
            }
            held = self.c.status == "in_progress"
            holders = set(connection.scalars(self.sql.select(self.c.worker).where(held).distinct()))
            deleting = connection.execute(
                self.sql.select(self.jobs).where(self.c.delete_asked, self.sql.not_(held))
            ).all()
        self._beats = {
            name: seen if (seen := self._beats.get(name)) and seen[0] == beat else (beat, now)
            for name, beat in beats.items()
        }
        silent = {name for name, (_, since) in self._beats.items() if now - since > self.limits.lease_s}
        dead = silent | set(lost) | (set(beats) if all_workers else set()) | (holders - set(beats))
        self._remove_asked(deleting)
        if not dead:
            return []
        taken = list["Row[Any]"]()
        with self._writes() as (connection, version):
            of_dead = self.sql.and_(self.c.worker.in_(dead), self.c.status == "in_progress")
            for row in connection.execute(self.sql.select(self.jobs).where(of_dead)).all():
                taken.append(row)
                if row.cancel_asked:
                    self._end(connection, version, row, CANCELLED, _CANCELLED_WORDS)
                elif row.attempts >= MOST_ATTEMPTS:
                    words = f"the worker that made the clip ended without a word, {row.attempts} times"
                    self._end(connection, version, row, WORKER_LOST, words)
                else:
                    again = {"status": "queued", "worker": None, "stage": "", "eta_s": None, "version": version}
                    connection.execute(self.sql.update(self.jobs).where(self.c.place == row.place).values(again))
            connection.execute(self.sql.delete(self.workers).where(self.workers.c.name.in_(dead)))
        self._remove_asked(taken)
        return sorted(dead)

    def _held(self, video: str, worker: str) -> "ColumnElement[bool]":
        return self.sql.and_(self.c.id == video, self.c.worker == worker, self.c.status == "in_progress")

    def _end(
        self,
        connection: "Connection",
        version: int,
        row: "Row[Any]",
        code: str | None,
        message: str | None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        now = max(self.clock.now(), row.created_at, row.started_at or 0)
        kept = self.limits.completed_s if code is None else self.limits.failed_s
        values = {
            "status": "completed" if code is None else "failed",
            "error_code": code,
            "error_message": message,
            "completed_at": now,
            "expires_at": now + int(kept),
            "eta_s": None,
            "stage": "",
            "version": version,
            **(more or {}),
        }
        connection.execute(self.sql.update(self.jobs).where(self.c.place == row.place).values(values))

    def _remove_asked(self, rows: "Sequence[Row[Any]]") -> None:
        """Remove those of these ended jobs whose deletion was asked for."""
        for row in rows:
            with self._reads() as connection:
                now = self._found(connection, row.id)
            if now is not None and now.delete_asked and now.status != "in_progress":
                self._remove(row.id)

    def _remove(self, video: str) -> None:
        """Remove files, then the row: where the process dies in between, the row still says what to do."""
        self.files.remove(video)
        with self._writes() as (connection, _):
            connection.execute(self.sql.delete(self.idempotency).where(self.idempotency.c.job == video))
            connection.execute(self.sql.delete(self.jobs).where(self.c.id == video))
