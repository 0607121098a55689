"""Votes in a SQLite file: several servers and raters may write to one; what was acknowledged survives any kill.

The file is in WAL mode with full synchronisation: a transaction is on the disk before its answer is sent. Nothing is
ever deleted: a vote that a rater takes back keeps its row, with the time of that.

    study     name -> value: the questions, the seed
    systems, prompts, clips                          what is compared; a clip's content by its SHA-256
    raters                                           their names, and the secret by which the page is theirs
    pairs     what was shown to whom, on which side, as which kind (vote, identical, damaged), when
    votes, answers                                   one vote for a pair, an answer for each question
"""

import json
import os
import secrets
import sqlite3
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mova_engine.data.text import shown
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file

_MARK, _VERSION = 0x6D6F7661, 1  # SQLite's application_id ("mova") and user_version
_BUSY_SECONDS = 30
_TABLES = """
create table study (name text primary key, value text not null);
create table systems (id integer primary key, name text not null unique);
create table prompts (id integer primary key, name text not null unique, text text not null);
create table clips (
    id integer primary key, system integer not null references systems, prompt integer not null references prompts,
    sha256 text not null, seconds real not null, lufs real, unique (system, prompt));
create table raters (
    id integer primary key, name text not null unique, token text not null unique, since real not null);
create table pairs (
    id integer primary key, token text not null unique,
    rater integer not null references raters, place integer not null,
    kind text not null check (kind in ('vote', 'identical', 'damaged')),
    left_clip integer not null references clips, right_clip integer not null references clips,
    damaged text check (damaged in ('left', 'right')),
    left_token text not null unique, right_token text not null unique, served real not null, unique (rater, place));
create table votes (
    id text primary key, pair integer not null references pairs, time real not null, seconds real, withdrawn real);
create unique index one_vote on votes (pair) where withdrawn is null;
create table answers (
    vote text not null references votes, question text not null,
    answer text not null check (answer in ('left', 'right', 'tie', 'bad')), primary key (vote, question));
"""


class VoteStore:
    """A store's connections, one for each thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    @classmethod
    def open(cls, path: Path) -> "VoteStore":
        """A store that is there. MovaError for anything else."""
        require_file(path)
        with open(path, "rb") as file:
            head = file.read(100)
        known = head[:15] == b"SQLite format 3" and len(head) == 100
        if not known or struct.unpack(">I", head[68:72])[0] != _MARK:
            raise MovaError(f"{path}: not a store of votes that `mova eval vote serve` made")
        if (version := struct.unpack(">I", head[60:64])[0]) != _VERSION:
            raise MovaError(f"{path}: is a store of version {version}, this is version {_VERSION}: use another store")
        return cls(path)

    @classmethod
    def make(cls, path: Path) -> "VoteStore":
        """The store at `path`, a new one if nothing is there. MovaError as `open`, and where none can be made."""
        if not os.path.lexists(path):
            fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                database = sqlite3.connect(fresh)
                database.executescript(
                    f"pragma application_id={_MARK}; pragma user_version={_VERSION}; begin; {_TABLES} commit;"
                )
                database.close()
                # Whole or not there, and of two servers that start at once the first one's.
                os.link(fresh, path)
            except FileExistsError:
                pass
            except (OSError, sqlite3.Error) as error:
                raise MovaError(f"--store {path} cannot be made: {error}") from None
            finally:
                fresh.unlink(missing_ok=True)
        return cls.open(path)

    @property
    def _database(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._local, "database", None)
        if found is None:
            try:
                found = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
                found.row_factory = sqlite3.Row
                for setting in ("journal_mode=wal", "synchronous=full", "foreign_keys=on"):
                    found.execute(f"pragma {setting}")
            except sqlite3.Error as error:
                raise MovaError(f"{self.path}: cannot be opened ({error})") from None
            self._local.database = found
        return found

    def close(self) -> None:
        """End this thread's connection."""
        if (found := getattr(self._local, "database", None)) is not None:
            found.close()
            self._local.database = None

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer runs beside; on disk when the block has ended, undone when it raises.

        MovaError where the store cannot be written, as on a full disk.
        """
        database = self._database
        try:
            database.execute("begin immediate")
            yield database
            database.execute("commit")
        except sqlite3.Error as error:
            raise MovaError(f"{self.path}: cannot be written to ({error})") from None
        finally:
            if database.in_transaction:
                database.execute("rollback")

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a query finds. MovaError for a store that cannot be read."""
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise MovaError(f"{self.path}: cannot be read ({error})") from None

    def agree(self, name: str, value: Any) -> None:
        """Note a fact of the study that all servers of a store share. MovaError where another value stands there."""
        text = json.dumps(value)
        with self.writing() as database:
            database.execute("insert or ignore into study values (?, ?)", (name, text))
            (known,) = database.execute("select value from study where name = ?", (name,)).fetchone()
        if known != text:
            raise MovaError(f"{self.path}: was begun with {name} {known}, not {text}: give that, or another --store")

    def fact(self, name: str) -> Any:
        """What `agree` noted. MovaError where nothing is."""
        found = self.rows("select value from study where name = ?", (name,))
        if not found:
            raise MovaError(f"{self.path}: no study was begun in it")
        return json.loads(found[0]["value"])

    def add_clips(
        self, prompts: dict[str, str], clips: dict[tuple[str, str], tuple[str, float, float | None]]
    ) -> dict[tuple[str, str], int]:
        """Note what is compared: {(system, prompt): (SHA-256, seconds, lufs)}; returns the clips' numbers.

        Clips may be added to a store. MovaError for one that is another file than the one voted on before.
        """
        found: dict[tuple[str, str], int] = {}
        with self.writing() as database:
            for prompt, text in prompts.items():
                database.execute("insert or ignore into prompts (name, text) values (?, ?)", (prompt, text))
            for (system, prompt), (digest, seconds, lufs) in clips.items():
                database.execute("insert or ignore into systems (name) values (?)", (system,))
                database.execute(
                    "insert or ignore into clips (system, prompt, sha256, seconds, lufs) values "
                    "((select id from systems where name = ?), (select id from prompts where name = ?), ?, ?, ?)",
                    (system, prompt, digest, seconds, lufs),
                )
                row = database.execute(
                    "select clips.id, sha256 from clips join systems on systems.id = system "
                    "join prompts on prompts.id = prompt where systems.name = ? and prompts.name = ?",
                    (system, prompt),
                ).fetchone()
                if row["sha256"] != digest:
                    raise MovaError(
                        f"the clip of '{shown(system)}' for '{shown(prompt)}' is another file than the one in "
                        f"{self.path}: give that one, or another --store"
                    )
                found[system, prompt] = row["id"]
        return found
