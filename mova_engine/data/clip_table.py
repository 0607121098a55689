"""Lists of clips that stay on disk: millions of rows, of which a process holds none in memory.

A table is a folder of plain arrays, made once from a manifest, which every process of a machine maps into its memory.
Opening it reads one small file; a clip is a few lookups. The pages belong to the files, so that all processes share
them and the system may drop them.

    facts.json                        number of clips, digests of order and content, the shards
    start.f64  place.u32              per clip: start in seconds, number of its row in the manifest
    width.u32  height.u32  seconds.f64     what the manifest states of its size; 0 where it does not
    id.ends.u64  id.utf8              texts one after the other, and where each ends; also of caption and path
    shard.u32  offset.u64  size.u64  sha256.bin      of clips in shards
    crop_x.u32 ... pad_width.u32 ... sound_shift.f64 gain_db.f64     where a clip has one; a width of 0: none
    id.hash.u64                       sorted, from which clips of one id are found
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from mova_engine.data.clip_columns import ClipColumns, InShards, blocks_of
from mova_engine.data.clip_edit import NO_EDIT, ClipEdit
from mova_engine.data.metadata import Entry, ShownSize, same_id, told
from mova_engine.data.shard_files import FileInShard, Shard
from mova_engine.errors import MovaError
from mova_engine.files.byte_ranges import FileFacts

# Increased whenever the layout of tables changes.
VERSION = 4
FACTS = "facts.json"
TEXTS: tuple[str, ...] = ("id", "caption", "path")
NUMBERS = {"start": "f64", "place": "u32", "width": "u32", "height": "u32", "seconds": "f64"}
OF_SHARDS = {"shard": "u32", "offset": "u64", "size": "u64"}
BOXES = ("crop_x", "crop_y", "crop_width", "crop_height", "pad_width", "pad_height")
OF_EDITS = {**dict.fromkeys(BOXES, "u32"), "sound_shift": "f64", "gain_db": "f64"}
TYPES = {"f64": np.dtype("<f8"), "u32": np.dtype("<u4"), "u64": np.dtype("<u8")}
DIGEST = 32
# Rows that are written at once.
BLOCK = 4096


class ClipTable(Sequence[Entry]):
    """The clips of a table, in the order of their manifest. base: the manifest's folder.

    order_digest, content_digest: of the ids in order, see `clip_changes.order_digest`, and of what is told of each.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        try:
            facts = json.loads((folder / FACTS).read_bytes())
            self._count: int = facts["count"]
            self.order_digest: str = facts["order"]
            self.content_digest: str = facts["content"]
            places = [(x if "://" in x else str(base / x), FileFacts(**said)) for x, said in facts["shards"]]
            self._shards = [Shard(place, said) for place, said in places]
            self._numbers = {name: _mapped(folder / f"{name}.{kind}", TYPES[kind]) for name, kind in NUMBERS.items()}
            self._texts = {name: _Texts(folder, name) for name in TEXTS}
            if self._shards:
                self._numbers |= {n: _mapped(folder / f"{n}.{kind}", TYPES[kind]) for n, kind in OF_SHARDS.items()}
                self._digests = _mapped(folder / "sha256.bin", np.dtype(np.uint8)).reshape(-1, DIGEST)
            self._edited: bool = facts["edited"]
            if self._edited:
                self._numbers |= {n: _mapped(folder / f"{n}.{kind}", TYPES[kind]) for n, kind in OF_EDITS.items()}
            self._check_sizes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MovaError(f"{folder}: not a whole table of clips ({error}): remove it") from None

    def _check_sizes(self) -> None:
        """Raise ValueError if an array has lost rows, as a full disk or a loss of power leaves it."""
        arrays = {**self._numbers, **{name: texts.ends for name, texts in self._texts.items()}}
        if self._shards:
            arrays["sha256"] = self._digests
        short = [name for name, array in arrays.items() if len(array) != self._count]
        short += [name for name, texts in self._texts.items() if len(texts.ends) and texts.ends[-1] != len(texts.data)]
        if short:
            raise ValueError(f"{short[0]} is cut short")

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return SomeClips(self, range(self._count)[index])
        row = range(self._count)[index]
        path, shard = self._texts["path"][row], self._shard_of(row)
        file = self.base / path if shard is None else self._file(row, shard, path)
        size = ShownSize(*(self._numbers[name][row].item() for name in ShownSize._fields))
        start, shown = float(self._numbers["start"][row]), size if size.seconds else None
        return Entry(file, self._texts["caption"][row], self._texts["id"][row], start, shown, self._edit(row))

    def shown(self, first: int, count: int) -> np.ndarray:
        """The sizes of `count` clips from `first` on, float64 [count, 3] as of `ShownSize`; zeros: not stated."""
        columns = [self._numbers[name][first : first + count] for name in ShownSize._fields]
        return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)

    def _edit(self, row: int) -> ClipEdit:
        if not self._edited:
            return NO_EDIT
        x, y, width, height, *pad, shift, gain = (self._numbers[name][row].item() for name in OF_EDITS)
        return ClipEdit((x, y, width, height) if width else None, shift, gain, (pad[0], pad[1]) if pad[0] else None)

    def _shard_of(self, row: int) -> Shard | None:
        """The shard of a clip; None if it is a file of its own."""
        number = int(self._numbers["shard"][row]) if self._shards else 0
        return self._shards[number - 1] if number else None

    def _file(self, row: int, shard: Shard, name: str) -> FileInShard:
        offset, size = int(self._numbers["offset"][row]), int(self._numbers["size"][row])
        return FileInShard(shard, name, offset, size, self._digests[row].tobytes().hex())


class SomeClips(Sequence[Entry]):
    """Clips of another sequence, by their rows, which are a range or an array of int64: entries are made when they are
    asked for.
    """

    def __init__(self, clips: Sequence[Entry], rows: range | np.ndarray) -> None:
        self._clips, self._rows = clips, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return SomeClips(self._clips, self._rows[index])
        return self._clips[int(self._rows[index])]


class TableRows(SomeClips):
    """Clips of a table, by their rows. order_digest: changes with these and with the table's; content_digest: its."""

    def __init__(self, table: ClipTable, rows: np.ndarray, digest: str) -> None:
        super().__init__(table, rows)
        self.order_digest = hashlib.sha256(f"{table.order_digest} {digest}".encode()).hexdigest()[:16]
        self.content_digest = table.content_digest


class _Texts:
    """A column of texts."""

    def __init__(self, folder: Path, name: str) -> None:
        self.ends = _mapped(folder / f"{name}.ends.u64", TYPES["u64"])
        self.data = _mapped(folder / f"{name}.utf8", np.dtype(np.uint8))

    def __getitem__(self, row: int) -> str:
        begin = int(self.ends[row - 1]) if row else 0
        return self.data[begin : int(self.ends[row])].tobytes().decode()


def _mapped(path: Path, kind: np.dtype) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


def table_folder(tables: Path, manifest: Path) -> Path:
    """Where the table of a manifest lies in the folder `tables`: another place for each content of the manifest."""
    status = manifest.stat()
    facts = [VERSION, str(manifest.absolute()), status.st_size, status.st_mtime_ns]
    return tables / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """A with-block that one process of a machine at a time enters for the table `folder`; the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "wb") as lock:
        # On a file system without locks several may write the table, of which the first to end is kept.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_table(folder: Path, manifest: Path) -> None:
    """Write the clips of `manifest` as the table `folder`, whole or not at all. Raises MovaError as `entries_of`, and
    if two clips have one id.
    """
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    made.mkdir(parents=True)
    try:
        with _TableWriter(made, manifest.parent) as writer:
            for word, number, block in blocks_of(manifest, BLOCK):
                writer.add(word, number, block)
        writer.check_ids(manifest)
        os.replace(made, folder)
    except OSError as error:
        if not folder.is_dir():
            raise MovaError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


class _TableWriter:
    """The files of a table while they are written."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, f"{base}{os.sep}"
        self._files: dict[str, BinaryIO] = {}
        self._order, self._content = hashlib.sha256(b"True\n"), hashlib.sha256()
        self._shards: dict[Shard, int] = {}
        self._ends = dict.fromkeys(TEXTS, 0)
        self._count, self._word, self._edited = 0, "row", False

    def __enter__(self) -> "_TableWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._write_facts()
        for file in self._files.values():
            # After a loss of power the table must not be there without its rows.
            if exception[0] is None:
                file.flush()
                os.fsync(file.fileno())
            file.close()

    def add(self, word: str, numbers: Sequence[int], block: ClipColumns) -> None:
        """Append clips, whose rows have these numbers in the manifest."""
        self._word = word
        self._numbers("place", "u32", numbers)
        self._numbers("start", "f64", block.starts)
        sizes = [shown or ShownSize(0, 0, 0.0) for shown in block.shown]
        for name, values in zip(ShownSize._fields, zip(*sizes, strict=True), strict=True) if sizes else ():
            self._numbers(name, NUMBERS[name], values)
        self._texts("id", block.ids)
        self._texts("caption", block.captions)
        shards = block.in_shards.shards if block.in_shards else [None] * len(block.ids)
        names = zip(block.names, shards, strict=True)
        self._texts("path", [name if shard else name.removeprefix(self.base) for name, shard in names])
        if block.in_shards is not None or self._shards:
            self._in_shards(block)
        edits = block.edits or [NO_EDIT] * len(block.ids)
        if block.edits is not None or self._edited:
            self._edits(edits)
        self._file("id.hash.u64").write(b"".join([_hash(name) for name in block.ids]))
        if block.ids:
            self._order.update((("\n" if self._count else "") + "\n".join(block.ids)).encode())
        said = [f"{told(*each)}\0" for each in zip(block.starts, block.captions, edits, strict=True)]
        self._content.update("".join(said).encode())
        self._count += len(block.ids)

    def _in_shards(self, block: ClipColumns) -> None:
        if not self._shards and self._count:
            # The rows before had no shards.
            for name, kind in OF_SHARDS.items():
                self._file(f"{name}.{kind}").write(bytes(self._count * TYPES[kind].itemsize))
            self._file("sha256.bin").write(bytes(self._count * DIGEST))
        nothing = [0] * len(block.ids)
        found = block.in_shards or InShards([None] * len(nothing), nothing, nothing, bytes(DIGEST * len(nothing)))
        known = self._shards
        numbers = [0 if shard is None else known.setdefault(shard, len(known) + 1) for shard in found.shards]
        self._numbers("shard", "u32", numbers)
        self._numbers("offset", "u64", found.offsets)
        self._numbers("size", "u64", found.sizes)
        self._file("sha256.bin").write(found.digests)

    def _edits(self, edits: Sequence[ClipEdit]) -> None:
        if not self._edited:
            # The rows before had none.
            for name, kind in OF_EDITS.items():
                self._file(f"{name}.{kind}").write(bytes(self._count * TYPES[kind].itemsize))
            self._edited = True
        rows = [(*(e.crop or (0, 0, 0, 0)), *(e.pad or (0, 0)), e.sound_shift, e.gain_db) for e in edits]
        for (name, kind), values in zip(OF_EDITS.items(), zip(*rows, strict=True), strict=True) if rows else ():
            self._numbers(name, kind, values)

    def _numbers(self, name: str, kind: str, values: Sequence[float]) -> None:
        self._file(f"{name}.{kind}").write(np.asarray(values, TYPES[kind]).tobytes())

    def _texts(self, name: str, texts: Sequence[str]) -> None:
        parts = [text.encode() for text in texts]
        ends = self._ends[name] + np.cumsum([len(part) for part in parts], dtype=np.uint64)
        self._file(f"{name}.utf8").write(b"".join(parts))
        self._file(f"{name}.ends.u64").write(ends.astype(TYPES["u64"]).tobytes())
        self._ends[name] = int(ends[-1]) if len(ends) else self._ends[name]

    def _file(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = open(self.folder / name, "wb")  # noqa: SIM115 (closed by __exit__)
        return self._files[name]

    def _write_facts(self) -> None:
        facts: dict[str, Any] = {
            "version": VERSION,
            "count": self._count,
            "order": self._order.hexdigest()[:16],
            "content": self._content.hexdigest()[:16],
            "edited": self._edited,
            # Relative to the manifest's folder, which another process may name otherwise.
            "shards": [[shard.address.removeprefix(self.base), asdict(shard.facts)] for shard in self._shards],
        }
        (self.folder / FACTS).write_text(json.dumps(facts))

    def check_ids(self, manifest: Path) -> None:
        """Raise MovaError if two clips have one id. The hashes are sorted in their file, not in memory."""
        if not self._count:
            raise MovaError(f"{manifest}: lists no clips")
        hashes = np.memmap(self.folder / "id.hash.u64", TYPES["u64"], "r+")
        hashes.sort()
        table = None
        for same in np.unique(hashes[1:][hashes[1:] == hashes[:-1]]):
            table = table or ClipTable(self.folder, manifest.parent)
            self._compare(table, int(same), manifest)

    def _compare(self, table: ClipTable, wanted: int, manifest: Path) -> None:
        first: dict[str, int] = {}
        for row in range(len(table)):
            name = table._texts["id"][row]
            if int.from_bytes(_hash(name), "little") != wanted:
                continue
            if name in first:
                here, there = (int(table._numbers["place"][r]) for r in (row, first[name]))
                raise same_id(manifest, name, f"{self._word} {here}", f"{self._word} {there}")
            first[name] = row


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
