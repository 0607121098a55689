"""Transactions on a store's database, and rows as jobs."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mova_engine.serving.store_clock import StoreClock
from mova_engine.serving.store_errors import DiskFullError, StoreRefusal
from mova_engine.serving.store_files import StoreFiles
from mova_engine.serving.store_tables import NEVER, READS, store_tables
from mova_engine.serving.video_job import VideoJob, VideoSettings

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine, Row

_JOB_COLUMNS = tuple(
    name for name in VideoJob.__dataclass_fields__ if name not in ("settings", "facts", "queue_position")
)
# Seconds after which a request that met a full disk or a busy database is worth another try.
_RETRY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class StoreLimits:
    """What a store takes. queue: jobs that wait. per_owner: jobs of one owner that wait or run; None: no limit.
    completed_s, failed_s: seconds for which ended jobs and their files are kept. queued_s: after which a job that waits
    is given up. lease_s: seconds after which a worker without a heartbeat is lost. orphans_s: seconds after which files
    without a job are removed.
    """

    queue: int = 1000
    per_owner: int | None = None
    completed_s: float = 7 * 86400
    failed_s: float = 86400
    queued_s: float = 7 * 86400
    lease_s: float = 30.0
    orphans_s: float = 3600.0


class StoreDatabase:
    """A store's database and its files. Safe for several threads."""

    def __init__(self, engine: "Engine", files: StoreFiles, limits: StoreLimits) -> None:
        import sqlalchemy

        # An optional package, imported where a store is opened.
        self.sql, tables = sqlalchemy, store_tables()
        self.jobs, self.workers, self.idempotency = tables.jobs, tables.workers, tables.idempotency
        # The columns of jobs, which most statements are about.
        self.c = tables.jobs.c
        self.counters, self.measurements, self.due = tables.counters, tables.measurements, tables.due
        self.engine, self.files, self.limits, self.clock = engine, files, limits, StoreClock()
        self._reading = engine.execution_options(**{READS: True})

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @property
    def is_shared(self) -> bool:
        """Whether several machines may use the database."""
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def _reads(self) -> "Iterator[Connection]":
        with _errors_in_words(), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def _writes(self) -> "Iterator[tuple[Connection, int]]":
        """A transaction, and the version of what it changes. One at a time: the counter's row is locked first, so that
        versions are visible in their order and no two transactions wait for one another.
        """
        with _errors_in_words(), self.engine.begin() as connection:
            bump = (
                self.sql.update(self.counters)
                .where(self.counters.c.name == "version")
                .values(value=self.counters.c.value + 1)
            )
            yield connection, connection.execute(bump.returning(self.counters.c.value)).scalar_one()

    def _version(self, connection: "Connection") -> int:
        count = self.counters.c
        return connection.scalar(self.sql.select(count.value).where(count.name == "version")) or 0

    def _found(self, connection: "Connection", video: str, owner: str | None = None) -> "Row[Any] | None":
        wanted = self.c.id == video if owner is None else self.sql.and_(self.c.id == video, self.c.owner == owner)
        return connection.execute(self.sql.select(self.jobs).where(wanted)).first()

    def _with_queue(self, connection: "Connection", job: VideoJob, place: int, row_due: float | None) -> VideoJob:
        """The job with its place in the queue and, where all is predicted, the seconds until it is done."""
        if job.status != "queued":
            return job
        mine = NEVER if row_due is None else row_due
        ahead = self.sql.and_(
            self.c.status == "queued",
            self.sql.or_(self.due < mine, self.sql.and_(self.due == mine, self.c.place < place)),
        )
        seconds = self.sql.func.coalesce(self.sql.func.sum(self.c.predicted_s), 0.0)
        first = self.sql.select(self.sql.func.count().label("number"), seconds.label("seconds")).where(ahead)
        row = connection.execute(first).one()
        position, waiting = row.number, row.seconds
        if job.predicted_s is None:
            return replace(job, queue_position=position, eta_s=None)
        running, hands = self._running(connection)
        return replace(job, queue_position=position, eta_s=(waiting + running) / hands + job.predicted_s)

    def _running(self, connection: "Connection") -> tuple[float, int]:
        """Predicted seconds that are left of the jobs in progress, and how many workers share what waits."""
        left = self.sql.func.coalesce(self.sql.func.sum(self.sql.func.coalesce(self.c.eta_s, self.c.predicted_s)), 0.0)
        seconds = connection.scalar(self.sql.select(left).where(self.c.status == "in_progress"))
        return float(seconds or 0.0), max(
            1, connection.scalar(self.sql.select(self.sql.func.count()).select_from(self.workers)) or 0
        )

    def measured(self, key: str) -> dict[str, Any]:
        """What was noted under a key; {}: nothing."""
        with self._reads() as connection:
            found = connection.scalar(self.sql.select(self.measurements.c.value).where(self.measurements.c.key == key))
        return {} if found is None else json.loads(found)

    def note_measured(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep measurements under a key, in place of those before."""
        with self._writes() as (connection, _):
            self._replace(connection, key, value)

    def add_measured(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep measurements under a key beside those before of other names; of several writers none loses its own."""
        known = self.sql.select(self.measurements.c.value).where(self.measurements.c.key == key)
        with self._writes() as (connection, _):
            before = connection.scalar(known)
            self._replace(connection, key, {**({} if before is None else json.loads(before)), **value})

    def _replace(self, connection: "Connection", key: str, value: Mapping[str, Any]) -> None:
        connection.execute(self.sql.delete(self.measurements).where(self.measurements.c.key == key))
        connection.execute(self.sql.insert(self.measurements).values(key=key, value=json.dumps(value)))

    def hosts(self, model: str) -> set[str]:
        """The hosts of the workers that make a model's clips now."""
        with self._reads() as connection:
            rows = connection.execute(self.sql.select(self.workers.c.host, self.workers.c.models)).all()
        return {row.host for row in rows if model in json.loads(row.models)}


def job_of(row: "Row[Any]") -> VideoJob:
    """The job of a row of `jobs`."""
    values = row._mapping  # pyright: ignore[reportPrivateUsage]
    settings, facts = VideoSettings.from_json(values["settings"]), json.loads(values["facts"])
    return VideoJob(**{name: values[name] for name in _JOB_COLUMNS}, settings=settings, facts=facts)


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Errors of the database that pass by themselves as refusals that say when to try again."""
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    try:
        yield
    except OperationalError as error:
        reason = " ".join(str(error.orig).split())
        if "disk is full" in reason or "No space left" in reason:
            raise DiskFullError("the disk of the store is full: free some space on it", _RETRY_S) from None
        raise StoreRefusal(f"the store's database does not answer: {reason}", _RETRY_S) from None
    except PoolTimeout:
        raise StoreRefusal("all connections to the store's database are in use", 1.0) from None
