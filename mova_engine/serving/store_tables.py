"""The tables of a store, and how its database is opened: SQLite in WAL mode, or PostgreSQL by URL.

jobs          one row for each video; `place` is its age, `version` rises with each change of any job
idempotency   which job an owner's Idempotency-Key made
workers       who works; `beat` is counted up while a worker lives. No times: clocks jump
counters      the last version
measured      what stages of work took on this machine
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mova_engine.errors import MovaError, require_package

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection, Engine

# Version of the tables; another one is refused.
VERSION = 1
_BUSY_SECONDS = 30
# A connection for each thread of an API process that may ask at the same time.
_POOL, _MORE = 8, 64
# Marks connections that only read.
READS = "reads_only"
# The due time of what has none.
NEVER = 1e18


class StoreTables:
    """The tables, as SQLAlchemy has them."""

    def __init__(self) -> None:
        import sqlalchemy as sql

        self.metadata = sql.MetaData()
        integer = sql.BigInteger().with_variant(sql.Integer, "sqlite")
        self.jobs = sql.Table(
            "jobs",
            self.metadata,
            sql.Column("place", integer, primary_key=True, autoincrement=True),
            sql.Column("id", sql.String(40), nullable=False, unique=True),
            sql.Column("owner", sql.Text, nullable=False),
            sql.Column("status", sql.String(16), nullable=False),
            sql.Column("progress", sql.Integer, nullable=False, default=0),
            sql.Column("created_at", integer, nullable=False),
            sql.Column("started_at", integer),
            sql.Column("completed_at", integer),
            sql.Column("expires_at", integer),
            sql.Column("model", sql.Text, nullable=False),
            sql.Column("settings", sql.Text, nullable=False),
            sql.Column("batch_key", sql.Text, nullable=False, default=""),
            # created_at + deadline_s: what is ordered, never compared with a clock.
            sql.Column("due", sql.Float),
            sql.Column("stage", sql.Text, nullable=False, default=""),
            sql.Column("step", sql.Integer, nullable=False, default=0),
            sql.Column("steps", sql.Integer, nullable=False, default=0),
            sql.Column("eta_s", sql.Float),
            sql.Column("predicted_s", sql.Float),
            sql.Column("error_code", sql.Text),
            sql.Column("error_message", sql.Text),
            sql.Column("remixed_from", sql.Text),
            sql.Column("worker", sql.Text),
            sql.Column("attempts", sql.Integer, nullable=False, default=0),
            sql.Column("cancel_asked", sql.Boolean, nullable=False, default=False),
            sql.Column("delete_asked", sql.Boolean, nullable=False, default=False),
            sql.Column("facts", sql.Text, nullable=False, default="{}"),
            sql.Column("version", integer, nullable=False),
            sql.Index("jobs_by_status", "status", "due", "place"),
            sql.Index("jobs_by_owner", "owner", "place"),
            sql.Index("jobs_by_version", "version"),
        )
        self.idempotency = sql.Table(
            "idempotency",
            self.metadata,
            sql.Column("owner", sql.Text, primary_key=True),
            sql.Column("key", sql.Text, primary_key=True),
            sql.Column("request_hash", sql.Text, nullable=False),
            sql.Column("job", sql.String(40), nullable=False, index=True),
        )
        self.workers = sql.Table(
            "workers",
            self.metadata,
            sql.Column("name", sql.Text, primary_key=True),
            sql.Column("host", sql.Text, nullable=False),
            sql.Column("models", sql.Text, nullable=False, default="[]"),
            sql.Column("beat", integer, nullable=False, default=0),
        )
        self.counters = sql.Table(
            "counters",
            self.metadata,
            sql.Column("name", sql.Text, primary_key=True),
            sql.Column("value", integer, nullable=False),
        )
        self.measurements = sql.Table(
            "measured",
            self.metadata,
            sql.Column("key", sql.Text, primary_key=True),
            sql.Column("value", sql.Text, nullable=False),
        )

        # Jobs without a deadline come after those with one.
        self.due = sql.func.coalesce(self.jobs.c.due, NEVER)


@cache
def store_tables() -> StoreTables:
    """The tables. MovaError where SQLAlchemy is not installed."""
    require_package("sqlalchemy", "a store of video jobs", instead=" (or the extra: pip install 'mova-engine[serve]')")
    return StoreTables()


def database_url(url: str | None, folder: Path) -> "URL":
    """The database of a store; None: the SQLite file in its folder. MovaError for other kinds."""
    store_tables()
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    if not url:
        return URL.create("sqlite", database=str(folder / "jobs.sqlite"))
    try:
        found = make_url(url)
    except ArgumentError:
        raise MovaError("--database takes a URL such as postgresql://user@host/name") from None
    if found.get_backend_name() == "sqlite":
        return found
    if found.get_backend_name() != "postgresql":
        raise MovaError(f"--database takes postgresql://... or sqlite:///FILE, got {found.get_backend_name()}://")
    require_package("psycopg", "a PostgreSQL database", instead=" (or the extra: pip install 'mova-engine[postgres]')")
    return found.set(drivername="postgresql+psycopg")


def open_engine(url: "URL") -> "Engine":
    """The database with all tables, made where it is new. MovaError where it cannot be opened, or is another's."""
    import sqlalchemy as sql
    from sqlalchemy import event
    from sqlalchemy.exc import DBAPIError

    counters = store_tables().counters
    settings: dict[str, Any] = {"pool_size": _POOL, "max_overflow": _MORE, "pool_pre_ping": True}
    if url.get_backend_name() == "sqlite":
        settings |= {"connect_args": {"timeout": _BUSY_SECONDS, "check_same_thread": False}, "pool_pre_ping": False}
    engine = sql.create_engine(url, **settings)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    shown = url.render_as_string(hide_password=True)
    try:
        with engine.begin() as connection:
            _make_tables(connection)
            found = connection.scalar(sql.select(counters.c.value).where(counters.c.name == "tables"))
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        raise MovaError(f"the store's database {shown} cannot be opened: {reason}") from None
    if found != VERSION:
        raise MovaError(f"{shown} is a store of version {found}, this is version {VERSION}: use another one")
    return engine


def _make_tables(connection: "Connection") -> None:
    import sqlalchemy as sql

    if connection.dialect.name == "postgresql":
        # Of servers that start at once, one makes the tables.
        connection.execute(sql.text("select pg_advisory_xact_lock(1836021345)"))
    fresh = not sql.inspect(connection).has_table("counters")
    store_tables().metadata.create_all(connection)
    if fresh:
        rows = [{"name": "tables", "value": VERSION}, {"name": "version", "value": 0}]
        connection.execute(sql.insert(store_tables().counters), rows)


def _prepare_sqlite(connection: Any, _: object) -> None:
    # Transactions are begun by `_begin_sqlite`, not by the driver at its own time.
    connection.isolation_level = None
    cursor = connection.cursor()
    for setting in ("journal_mode=wal", "synchronous=full", "journal_size_limit=16777216"):
        cursor.execute(f"pragma {setting}")
    cursor.close()


def _begin_sqlite(connection: "Connection") -> None:
    # A transaction that reads before it writes would fail, not wait, where another one wrote in between.
    reads = connection.get_execution_options().get(READS, False)
    connection.exec_driver_sql("begin" if reads else "begin immediate")
