"""Makes the index of tar shards: which clips they hold, and where in them the bytes of each lie.

Shards are as WebDataset writes them: plain tar files in which the files of one sample have one name up to the first
dot.

    0001.mp4  0001.txt                the clip and its caption
    0001.mp4  0001.json               the clip and {"caption": ..., "start": ..., "id": ...}, or a list of such objects

A JSON file may also say `crop`, `pad`, `sound_shift` and `gain_db`, see `data.clip_edit`.

Each shard is read once from its beginning to its end; the index holds the digest of every media file. It is a Parquet
file that is a manifest as any other: its columns `shard`, `member`, `offset`, `size` and `sha256` take the place of
`video_path`, see `data.metadata`.
"""

import hashlib
import io
import json
import posixpath
import tarfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from tarfile import InvalidHeaderError, ReadError, TruncatedHeaderError  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any, BinaryIO, Self

import numpy as np

from mova_engine.data.clip_edit import EDIT_KEYS, LIST_KEYS
from mova_engine.data.manifest_rows import SIZE_KEYS
from mova_engine.data.media.decode import probe_shown
from mova_engine.data.metadata import CAPTION, MEDIA, entry_of
from mova_engine.data.shard_files import FileInShard, Shard
from mova_engine.data.text import shown
from mova_engine.errors import MovaError, counted, require_package
from mova_engine.files.atomic import whole_file
from mova_engine.files.byte_ranges import (
    LEAST_RATE,
    SILENCE_S,
    FileFacts,
    PassingError,
    UnreachableError,
    end_retries,
    is_local,
    opened,
    read_facts,
    retried,
    was_address,
    without_query,
)

CHUNK = 1 << 20
# Bytes of a tar file's header and of what its contents are padded to; at its end there is at least one of zeros.
BLOCK = 512
# The largest caption or JSON file of a sample that is read.
LARGEST_TEXT = 16 << 20
# Keys of a sample's JSON that reach the index.
KEYS = ("caption", "start", "id", *EDIT_KEYS)
# Rows of one group of the Parquet file, and its columns.
ROWS = 1 << 16
COLUMNS = {
    **dict.fromkeys(("id", "caption"), "string"),
    "start": "float64",
    **dict.fromkeys(("shard", "member"), "string"),
    **dict.fromkeys(("offset", "size"), "int64"),
    "sha256": "string",
    "shard_size": "int64",
    "shard_modified": "float64",
    "shard_etag": "string",
    **dict.fromkeys(LIST_KEYS, "string"),
    **dict.fromkeys(("sound_shift", "gain_db"), "float64"),
}
# What is written with `sizes`.
SIZES = dict.fromkeys(SIZE_KEYS, "float64")


@dataclass(frozen=True)
class Member:
    """A file of a shard. text: its content, of captions and JSON; None for media files."""

    name: str
    offset: int
    size: int
    sha256: str
    text: bytes | None


@dataclass(frozen=True)
class IndexedShard:
    """A shard's rows, and what was found beside them. without_clip: samples that hold no media file. unread: why the
    sizes of some are not known.
    """

    rows: list[dict[str, Any]]
    without_clip: int
    unread: tuple[str, ...] = ()


def write_index(
    shards: Sequence[str],
    out: Path,
    *,
    base: str | None = None,
    threads: int = 4,
    overwrite: bool = False,
    sizes: bool = False,
    say: Callable[[str], object] = print,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Read `shards` (paths, http://, s3:// and so on) and write their index to `out`; returns the number of clips.

    base: the address under which the trainer will find the shards, by their names; None: where they are now. Shards on
    this machine are named relative to the folder of `out`. sizes: look at each clip, and write width, height and
    duration too, which buckets of long lists need; null for a clip that cannot be read, which is told. say: told what
    was found. progress: called with the number of shards that are read.
    Raises MovaError, naming shard and file, for a shard that is missing, cut short or no tar file, for samples without
    caption or with two media files, and for clips of one id. Then nothing is written.
    """
    require_package("pyarrow", "the index")
    if not shards:
        raise MovaError("no shards: name tar files")
    if out.suffix.lower() != ".parquet":
        raise MovaError(f"--out {out}: an index ends in .parquet")
    if was_address(out):
        raise MovaError(f"--out {out}: an index is a file of this machine; --base says where its shards will be")
    if out.exists() and not overwrite:
        raise MovaError(f"{out} is there already: give another --out, or --overwrite")
    twice = [name for name, count in Counter(posixpath.basename(without_query(s)) for s in shards).items() if count > 1]
    if twice:
        raise MovaError(f"two shards are called {twice[0]}: their names tell clips apart, so rename one")
    without = 0
    with whole_file(out) as unfinished, ThreadPoolExecutor(threads) as pool:
        with _IndexWriter(unfinished, out.parent, COLUMNS | (SIZES if sizes else {})) as writer:
            try:
                for done, found in enumerate(pool.map(partial(read_shard, sizes=sizes), shards), start=1):
                    for reason in found.unread:
                        say(f"no size: {reason}")
                    writer.add(_stated(shards[done - 1], out.parent, base), found.rows)
                    without += found.without_clip
                    progress(done)
            except BaseException:
                end_retries()
                pool.shutdown(cancel_futures=True)
                raise
        if not writer.count:
            raise MovaError(f"{counted(len(shards), 'shard')} hold no clips")
        writer.check_ids()
    say(f"{out}: {counted(writer.count, 'clip')} of {counted(len(shards), 'shard')}")
    if without:
        say(f"{counted(without, 'sample')} without a video or sound file: left out")
    if same := writer.count - len(np.unique(writer.contents)):
        say(f"{counted(same, 'clip')} with the bytes and start of another one")
    return writer.count


def read_shard(address: str, sizes: bool = False) -> IndexedShard:
    """The clips of one shard. sizes: with width, height and duration. Raises MovaError as `write_index`."""
    name = without_query(address)
    if not name.lower().endswith(".tar"):
        raise MovaError(f"{name}: a shard is an uncompressed tar file and ends in .tar")
    facts = read_facts(address)

    def attempt() -> tuple[list[Member], int]:
        with opened(address) as stream:
            counting = _Counting(stream)
            try:
                return list(_members(counting, name)), counting.finish()
            # ValueError: of numbers in headers that are none.
            except (tarfile.TarError, EOFError, ValueError) as error:
                if counting.ended and facts.size is not None and counting.place < facts.size:
                    raise PassingError(f"the transfer broke off after {counting.place} of {facts.size} bytes") from None
                raise MovaError(f"{name}: cut short, damaged, or no tar file ({error})") from None

    members, size = retried(address, attempt)
    end = max((member.offset + -(-member.size // BLOCK) * BLOCK for member in members), default=0)
    if size < end + BLOCK:
        raise MovaError(f"{name}: cut short: the blocks of zeros that end a tar file are missing")
    facts = replace(facts, size=size)
    found = _clips(name, members, facts)
    return _with_sizes(found, Shard(address, facts)) if sizes else found


def _with_sizes(found: IndexedShard, shard: Shard) -> IndexedShard:
    """The same rows with what buckets need to know of their files; the duration is the whole file's."""
    rows, unread, known = list[dict[str, Any]](), list[str](), dict[str, tuple[int, int, float]]()
    for row in found.rows:
        file = FileInShard(shard, row["member"], row["offset"], row["size"], row["sha256"])
        try:
            # Several clips may be of one file.
            size = known[row["sha256"]] = known.get(row["sha256"]) or probe_shown(file)
        except UnreachableError:
            raise
        except MovaError as error:
            unread.append(str(error))
            rows.append(row)
            continue
        rows.append({**row, **dict(zip(SIZE_KEYS, map(float, size), strict=True))})
    return replace(found, rows=rows, unread=tuple(unread))


class _Counting(io.RawIOBase):
    """A stream that counts its bytes, and refuses to come too slowly. ended: whether it was read to its end."""

    def __init__(self, stream: BinaryIO) -> None:
        self.place, self.ended, self._begin = 0, False, time.monotonic()
        # What has come already, where a stream can tell: a whole chunk may take hours to come.
        self._some = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._some(size)
        self.place += len(data)
        self.ended = not data
        spent = time.monotonic() - self._begin - SILENCE_S
        if spent > 0 and self.place < spent * LEAST_RATE:
            raise PassingError(f"comes more slowly than {LEAST_RATE >> 10} KiB a second")
        return data

    def finish(self) -> int:
        """Read to the end; returns the number of all bytes."""
        while self.read(CHUNK):
            pass
        return self.place


class _Header(tarfile.TarInfo):
    """A header that must be whole: tarfile takes a damaged one behind the first for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except (InvalidHeaderError, TruncatedHeaderError) as error:
            raise ReadError(f"the header at byte {tarfile.offset}: {error}") from None


def _members(stream: _Counting, shard: str) -> Iterator[Member]:
    # A stream, not a file: tarfile then reads from the beginning to the end without going back.
    with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, tarinfo=_Header) as tar:  # pyright: ignore
        for info in tar:
            if not info.isfile():
                if not info.isdir() and PurePosixPath(info.name).suffix.lower() in (*MEDIA, CAPTION, ".json"):
                    how = "write the shard with tar --dereference --hard-dereference"
                    raise MovaError(f"{shard}: {shown(info.name)} is a link or no regular file: {how}")
                continue
            if info.issparse():
                raise MovaError(f"{shard}: {shown(info.name)} is stored as a sparse file: write the shard without them")
            content = tar.extractfile(info)
            assert content is not None, "a file has content"
            digest, read, text = hashlib.sha256(), 0, None
            suffix = PurePosixPath(info.name).suffix.lower()
            if suffix in (CAPTION, ".json"):
                if info.size > LARGEST_TEXT:
                    raise MovaError(f"{shard}: {shown(info.name)} is larger than {LARGEST_TEXT >> 20} MiB")
                text = content.read()
                read = len(text)
            elif suffix in MEDIA:
                while part := content.read(CHUNK):
                    digest.update(part)
                    read += len(part)
            else:
                continue
            if read < info.size:
                raise EOFError(f"{shown(info.name)} ends after {read} of {info.size} bytes")
            yield Member(info.name, info.offset_data, info.size, digest.hexdigest(), text)
        assert tar.fileobj is not None, "it is open"
        while part := tar.fileobj.read(CHUNK):
            if part.count(0) < len(part):
                raise MovaError(f"{shard}: goes on after its end (joined by cat?): use tar --concatenate")


def _clips(shard: str, members: Sequence[Member], facts: FileFacts) -> IndexedShard:
    samples: dict[str, dict[str, Member]] = {}
    for member in members:
        folder, name = posixpath.split(member.name)
        key, _, kind = name.partition(".")
        sample = samples.setdefault(posixpath.join(folder, key), {})
        if kind in sample:
            raise MovaError(f"{shard}: holds {shown(member.name)} twice")
        sample[kind] = member
    rows, without = list[dict[str, Any]](), 0
    for key, sample in samples.items():
        media = [member for member in sample.values() if member.text is None]
        if len(media) > 1:
            both = " and ".join(shown(member.name) for member in media[:2])
            raise MovaError(f"{shard}: sample {shown(key)} holds both {both}")
        if not media:
            without += 1
            continue
        rows += _rows(shard, media[0], sample, facts)
    return IndexedShard(rows, without)


def _rows(shard: str, media: Member, sample: dict[str, Member], facts: FileFacts) -> Iterator[dict[str, Any]]:
    place = f"{shard}: {shown(media.name)}"
    told, given = _beside(place, media, sample, ".json"), _beside(place, media, sample, CAPTION)
    said: Any = {}
    if told is not None:
        try:
            said = json.loads(_text(shard, told))
        except (ValueError, RecursionError) as error:
            raise MovaError(f"{shard}: {shown(told.name)}: not valid JSON ({error})") from None
    clips = said if isinstance(said, list) else [said]
    for clip in clips:
        if not isinstance(clip, dict):
            raise MovaError(f"{place}: its JSON must be an object or a list of them, got {type(clip).__name__}")
        row = {key: clip[key] for key in KEYS if clip.get(key) is not None}
        if given is not None:
            row.setdefault("caption", _text(shard, given).strip())
        if "caption" not in row:
            raise MovaError(f"{place}: has no caption: add a {CAPTION} file, or a .json file with the key 'caption'")
        row |= {"member": media.name, "offset": media.offset, "size": media.size, "sha256": media.sha256}
        row |= {"shard_size": facts.size, "shard_modified": facts.modified, "shard_etag": facts.etag}
        yield {key: value for key, value in row.items() if value is not None}


def _beside(place: str, media: Member, sample: dict[str, Member], suffix: str) -> Member | None:
    """The file of a kind that is a clip's: of several the one that is called as the clip is."""
    found = [member for kind, member in sample.items() if f".{kind.lower()}".endswith(suffix)]
    if len(found) > 1:
        own = PurePosixPath(media.name).with_suffix(suffix)
        exact = [member for member in found if PurePosixPath(member.name) == own]
        if not exact:
            raise MovaError(f"{place}: has several {suffix} files: {' and '.join(shown(m.name) for m in found[:2])}")
        return exact[0]
    return found[0] if found else None


def _text(shard: str, member: Member) -> str:
    try:
        return (member.text or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MovaError(f"{shard}: {shown(member.name)}: not UTF-8 ({error.reason})") from None


def _stated(address: str, folder: Path, base: str | None) -> str:
    """A shard as the index names it."""
    if base is not None:
        return f"{base.rstrip('/')}/{posixpath.basename(without_query(address))}"
    if not is_local(address):
        return address
    path = Path(address.removeprefix("file://"))
    # A shard that is a link keeps its name, from which its clips have theirs.
    path = path.parent.resolve() / path.name
    within = path.is_relative_to(folder.resolve())
    return path.relative_to(folder.resolve()).as_posix() if within else str(path)


class _IndexWriter:
    """Writes an index shard by shard. Of each clip it keeps 16 bytes: hashes of its id, and of its bytes, start and
    edit.
    """

    def __init__(self, path: Path, folder: Path, columns: Mapping[str, str]) -> None:
        import pyarrow as pa

        self.path, self.folder, self.count = path, folder, 0
        self.ids, self.contents = array("Q"), array("Q")
        self._schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in columns.items()])

    def __enter__(self) -> "_IndexWriter":
        import pyarrow.parquet as pq

        self._file = pq.ParquetWriter(self.path, self._schema, compression="zstd")
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, shard: str, rows: Sequence[dict[str, Any]]) -> None:
        """Append the clips of a shard. Raises MovaError for rows that a run would refuse."""
        import pyarrow as pa

        whole = []
        for row in rows:
            entry = entry_of(self.folder, f"{shard}: {shown(row['member'])}", {"shard": shard, **row})
            edit = entry.edit.facts
            edit |= {key: json.dumps(edit[key]) for key in LIST_KEYS if key in edit}
            whole.append({"shard": shard, **row, "id": entry.id, "start": entry.start, **edit})
            if entry.shown is not None:
                size = (*entry.shown[:2], entry.shown.seconds - entry.start)
                whole[-1] |= dict(zip(SIZE_KEYS, map(float, size), strict=True))
            self.ids.append(_hash(entry.id))
            self.contents.append(_hash(f"{row['sha256']} {entry.told.removesuffix(entry.caption)}"))
        if whole:
            self._file.write_table(pa.Table.from_pylist(whole, self._schema), row_group_size=ROWS)
        self.count += len(whole)

    def check_ids(self) -> None:
        """Raise MovaError if two clips have one id."""
        import pyarrow.parquet as pq

        hashes, counts = np.unique(np.asarray(self.ids), return_counts=True)
        suspects = set(hashes[counts > 1].tolist())
        places: dict[str, str] = {}
        for batch in pq.ParquetFile(self.path).iter_batches(columns=["id", "shard", "member"]) if suspects else ():
            for row in batch.to_pylist():
                place = f"{row['shard']}: {shown(row['member'])}"
                if _hash(row["id"]) not in suspects:
                    continue
                if row["id"] in places:
                    raise MovaError(f"{place}: id '{shown(row['id'])}' is taken by {places[row['id']]}")
                places[row["id"]] = place


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
