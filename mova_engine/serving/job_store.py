"""The store of video jobs: the only truth about them, which outlives any process."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mova_engine.serving.job_work import JobWork
from mova_engine.serving.store_database import StoreLimits, job_of
from mova_engine.serving.store_errors import IdempotencyConflict, QueueFullError, QuotaError, StillStoppingError
from mova_engine.serving.store_files import StoreFiles
from mova_engine.serving.store_tables import database_url, open_engine
from mova_engine.serving.video_job import CANCELLED, ENDED, EXPIRED, STATUSES, VideoJob

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row

# Seconds between looks at a job that is being stopped.
_LOOK_S = 0.05
# Seconds of a job of which nothing is predicted, for Retry-After alone.
_UNKNOWN_S = 60.0


class JobStore(JobWork):
    """Jobs in a database, their files in a folder. What a method has answered survives any kill.

    Every change of a job raises its `version`; readers that follow it ask `changed_since`.
    """

    @classmethod
    def open(cls, url: str | None, folder: Path, limits: StoreLimits | None = None) -> "JobStore":
        """The store in `folder`, made where it is new. url: its database; None: SQLite in the folder. Raises MovaError
        for a database that cannot be opened.
        """
        files = StoreFiles(folder)
        return cls(open_engine(database_url(url, folder)), files, limits or StoreLimits())

    def add(self, job: VideoJob, idempotency_key: str | None = None, request_hash: str = "") -> VideoJob:
        """Queue a job. With the key of an earlier request of the same hash: that request's job.

        Its files must be there. Raises IdempotencyConflict for a key with another request, QueueFullError, QuotaError.
        """
        with self._writes() as (connection, version):
            if idempotency_key is not None:
                mine = self.idempotency.c.owner == job.owner, self.idempotency.c.key == idempotency_key
                earlier = connection.execute(self.sql.select(self.idempotency).where(*mine)).first()
                if earlier is not None:
                    if earlier.request_hash != request_hash:
                        raise IdempotencyConflict("this Idempotency-Key was used for another request: take a new one")
                    row = self._found(connection, earlier.job)
                    if row is not None:
                        return self._seen(connection, row)
                    connection.execute(self.sql.delete(self.idempotency).where(*mine))
            self._check_room(connection, job.owner)
            now, settings = self.clock.now(), job.settings
            values = {
                "id": job.id,
                "owner": job.owner,
                "status": "queued",
                "created_at": now,
                "model": job.model,
                "settings": settings.to_json(),
                "batch_key": settings.batch_key,
                "due": None if settings.deadline_s is None else now + settings.deadline_s,
                "predicted_s": job.predicted_s,
                "remixed_from": job.remixed_from,
                "steps": job.steps,
                "version": version,
            }
            row = connection.execute(self.sql.insert(self.jobs).values(values).returning(*self.c)).one()
            if idempotency_key is not None:
                key = {"owner": job.owner, "key": idempotency_key, "request_hash": request_hash, "job": job.id}
                connection.execute(self.sql.insert(self.idempotency).values(key))
            return self._seen(connection, row)

    def _check_room(self, connection: "Connection", owner: str) -> None:
        """QueueFullError, QuotaError, with the seconds until the next job ends."""
        count = self.sql.select(self.sql.func.count()).select_from(self.jobs)
        waiting = connection.scalar(count.where(self.c.status == "queued")) or 0
        if waiting >= self.limits.queue:
            raise QueueFullError(f"{waiting} jobs wait already: try again later", self._until_one_ends(connection))
        if self.limits.per_owner is not None:
            active = connection.scalar(count.where(self.c.owner == owner, self.c.status.not_in(ENDED))) or 0
            if active >= self.limits.per_owner:
                words = f"{active} of your jobs wait or run, as many as one key may have: try again when one has ended"
                raise QuotaError(words, self._until_one_ends(connection, owner))

    def _until_one_ends(self, connection: "Connection", owner: str | None = None) -> float:
        wanted = (
            self.c.status.not_in(ENDED)
            if owner is None
            else self.sql.and_(self.c.status.not_in(ENDED), self.c.owner == owner)
        )
        first = self.sql.select(self.jobs).where(wanted).order_by(self.c.status, self.due, self.c.place).limit(1)
        row = connection.execute(first).first()
        if row is None:
            return 1.0
        seconds = self._seen(connection, row).eta_s or row.predicted_s or _UNKNOWN_S
        return max(1.0, seconds)

    def get(self, video: str, owner: str | None = None) -> VideoJob | None:
        """A job; None: there is none, or it is another owner's. owner None: of whomever."""
        with self._reads() as connection:
            row = self._found(connection, video, owner)
            return None if row is None else self._seen(connection, row)

    def list(
        self,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> tuple[list[VideoJob], bool]:
        """Up to `limit` jobs of an owner by age, those that follow the job `after`, and whether there are more.
        LookupError for an `after` that the owner does not have.
        """
        with self._reads() as connection:
            wanted = [] if owner is None else [self.c.owner == owner]
            if after is not None:
                row = self._found(connection, after, owner)
                if row is None:
                    raise LookupError(after)
                wanted.append(self.c.place > row.place if order == "asc" else self.c.place < row.place)
            by_age = self.c.place if order == "asc" else self.c.place.desc()
            rows = connection.execute(self.sql.select(self.jobs).where(*wanted).order_by(by_age).limit(limit + 1)).all()
            return [self._seen(connection, row) for row in rows[:limit]], len(rows) > limit

    def changed_since(self, version: int, owner: str | None = None) -> tuple[int, Sequence[VideoJob]]:
        """The store's version, and the jobs that changed after `version`, in the order of their changes. Deleted jobs
        are not among them.
        """
        with self._reads() as connection:
            latest = self._version(connection)
            if latest == version:
                return version, ()
            wanted = self.c.version > version
            if owner is not None:
                wanted = self.sql.and_(wanted, self.c.owner == owner)
            rows = connection.execute(self.sql.select(self.jobs).where(wanted).order_by(self.c.version)).all()
            return latest, [self._seen(connection, row) for row in rows]

    def counts(self, owner: str | None = None) -> dict[str, int]:
        """How many jobs are in each state."""
        count = self.sql.select(self.c.status, self.sql.func.count().label("number")).group_by(self.c.status)
        with self._reads() as connection:
            found = connection.execute(count if owner is None else count.where(self.c.owner == owner)).all()
        return dict.fromkeys(STATUSES, 0) | {row.status: row.number for row in found}

    def request_cancel(self, video: str, owner: str | None = None) -> VideoJob | None:
        """Ask for the end of a job: one that waits is cancelled at once, one in progress within a step. The job as it
        is then; None: there is none.
        """
        with self._writes() as (connection, version):
            row = self._found(connection, video, owner)
            if row is None:
                return None
            self._ask_to_stop(connection, version, row)
            again = self._found(connection, video)
            return None if again is None else self._seen(connection, again)

    def delete(self, video: str, owner: str | None = None, wait_s: float = 60.0) -> bool:
        """Stop a job and remove it with its files; returns when all of it is gone. False: there is none.

        Raises StillStoppingError if its worker has not stopped within `wait_s`; it is removed as soon as it has.
        """
        with self._writes() as (connection, version):
            row = self._found(connection, video, owner)
            if row is None:
                return False
            self._ask_to_stop(connection, version, row)
            gone = (
                self.sql.update(self.jobs).where(self.c.place == row.place).values(delete_asked=True, version=version)
            )
            connection.execute(gone)
        if row.status != "in_progress":
            self._remove(video)
            return True
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            with self._reads() as connection:
                left = self._found(connection, video)
            if left is None:
                return True
            if left.status in ENDED:
                # Whoever ended it removes it; where that process died, nobody else would before the next `recover`.
                self._remove(video)
                return True
            time.sleep(_LOOK_S)
        raise StillStoppingError("the job is being stopped, and is deleted when it has: ask again", 5.0)

    def _ask_to_stop(self, connection: "Connection", version: int, row: "Row[Any]") -> None:
        if row.status == "queued":
            self._end(connection, version, row, CANCELLED, "the job was cancelled")
        elif row.status == "in_progress":
            asked = (
                self.sql.update(self.jobs).where(self.c.place == row.place).values(cancel_asked=True, version=version)
            )
            connection.execute(asked)

    def expire(self, now: int | None = None) -> Sequence[str]:
        """Remove ended jobs whose time is over, with their files, and give up those that waited too long. now: seconds
        since 1970; None: the store's clock. Return the ids.
        """
        day = self.clock.now() if now is None else now
        over = self.sql.and_(self.c.status.in_(ENDED), self.c.expires_at <= day)
        stale = self.sql.and_(self.c.status == "queued", self.c.created_at <= day - self.limits.queued_s)
        with self._reads() as connection:
            old = list(connection.scalars(self.sql.select(self.c.id).where(over)))
            late = list(connection.scalars(self.sql.select(self.c.id).where(stale)))
        for video in old:
            self._remove(video)
        for video in late:
            with self._writes() as (connection, version):
                row = self._found(connection, video)
                if row is not None and row.status == "queued":
                    self._end(connection, version, row, EXPIRED, "the job waited too long")
        return [*old, *late]

    def sweep(self, grace_s: float | None = None) -> Sequence[str]:
        """Remove files of no job. grace_s: for how long they must have been seen so; None: the limits'."""
        with self._reads() as connection:
            known = set(connection.scalars(self.sql.select(self.c.id)))
        return self.files.sweep(known, self.limits.orphans_s if grace_s is None else grace_s)

    def file(self, video: str, name: str) -> Path:
        """Where a file of a job is, or would be."""
        return self.files.path(video, name)

    def put(self, video: str, name: str, data: bytes) -> Path:
        """Write a file of a job, whole or not at all; its inputs before `add`."""
        return self.files.put(video, name, data)

    def _seen(self, connection: "Connection", row: "Row[Any]") -> VideoJob:
        return self._with_queue(connection, job_of(row), row.place, row.due)
