"""Writes accepted clips as files: mp4, or tar shards of those. Each is decoded once more, in the size of the model's
clips, encoded, decoded again to be verified, and only then given its name.

OUT/metadata.jsonl                        the clips, as `mova train --data OUT` reads them
OUT/clips/1a/1ab2...-KEY.mp4              KEY changes with all that the file depends on beside the film's content
OUT/shards/000000-KEY.tar                 the same bytes, CLIP.mp4 and CLIP.json; KEY changes with the clips in it
OUT/shards/000000-KEY.json                the rows of its clips, and why some are not in it

Files that are there are whole and verified: the same call goes on where another was stopped. Files that are no longer
listed are left where they are.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import av

from mova_engine.config.curate_files import WrittenSettings
from mova_engine.config.model import ClipConfig
from mova_engine.curation.accepted_clips import AcceptedClip, unlistable, write_listing, write_virtual
from mova_engine.curation.sound_offset import sound_offset
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.pictures import exact_rate
from mova_engine.data.media.write import encode_mp4
from mova_engine.data.media.write_exact import encode_exact_mp4
from mova_engine.data.shard_index import read_shard
from mova_engine.errors import MovaError
from mova_engine.files.atomic import clear_stale, whole_file, write_atomic
from mova_engine.files.byte_ranges import UnreachableError

# Increased whenever the same clip and settings give other bytes.
VERSION = 1
# x264 takes half the time of its default with this one, and its files are no larger.
PRESET = "veryfast"
Progress = Callable[[int, int], None]


class FlawedClipError(MovaError):
    """A clip that cannot be written as it should be."""


def write_accepted(
    out: Path,
    clips: Sequence[AcceptedClip],
    shape: ClipConfig,
    form: Literal["none", "mp4", "shards"],
    settings: WrittenSettings,
    *,
    workers: int = 2,
    retry: bool = False,
    progress: Progress = lambda done, total: None,
) -> dict[str, str]:
    """Write the clips, and the list of them in their order, to `out`; returns {id: why} of those that are not listed.

    shape: of the model's clips; portrait ones are written in it turned. form: "none": the clips stay in their films,
    which the list names. workers: clips that are worked on at once. retry: write shards anew that lack clips. progress:
    called with the number of clips done, and of all. The bytes of all files depend on films, clips and settings alone.
    Raises MovaError where `out` cannot be written, and UnreachableError where a film's place does not answer.
    """
    if form == "none":
        return write_virtual(out, clips, shape)
    folder = out / ("clips" if form == "mp4" else "shards")
    if folder.is_dir():
        clear_stale(folder)
    writer = _ClipWriter(shape, settings, workers, progress, len(clips))
    refused = {clip.id: reason for clip in clips if (reason := unlistable(clip, virtual=False))}
    kept = [clip for clip in clips if clip.id not in refused]
    rows = writer.mp4s(folder, kept) if form == "mp4" else writer.shards(folder, kept, retry)
    write_listing(out, ({**row, **_place(folder, row)} for row in rows))
    return refused | writer.refused


def _place(folder: Path, row: Mapping[str, Any]) -> dict[str, str]:
    key = "video_path" if "video_path" in row else "shard"
    return {key: f"{folder.name}/{row[key]}"}


class _ClipWriter:
    """Writes clips into folders. refused: {id: why} of those that could not be."""

    def __init__(
        self, shape: ClipConfig, settings: WrittenSettings, workers: int, progress: Progress, total: int
    ) -> None:
        self.shape, self.settings, self.workers = shape, settings, workers
        self.refused = dict[str, str]()
        self._progress, self._done, self._total = progress, 0, total

    def mp4s(self, folder: Path, clips: Sequence[AcceptedClip]) -> Iterator[dict[str, Any]]:
        """Write clips as files, and yield the rows of those that are good; their paths are within `folder`."""
        for clip, reason in self._written(folder, clips):
            self._done += 1
            self._progress(self._done, self._total)
            if reason is None:
                yield {"video_path": self._name(clip), **self._told(clip)}
            else:
                self.refused[clip.id] = reason

    def shards(self, folder: Path, clips: Sequence[AcceptedClip], retry: bool) -> Iterator[dict[str, Any]]:
        """Write clips into tar shards, and yield the rows of those that are good; shards are within `folder`."""
        size = self.settings.shard_clips
        for number, first in enumerate(range(0, len(clips), size)):
            some = clips[first : first + size]
            told = [[self._name(clip), clip.caption] for clip in some]
            name = f"{number:06d}-{_hash([VERSION, told])}"
            if retry and _is_packed(folder, name) and _told_of(folder, name)["refused"]:
                (folder / f"{name}.json").unlink()
            if not _is_packed(folder, name):
                try:
                    self._pack(folder, name, some)
                except MovaError:
                    # Another call that writes the same was sooner, and took the files away.
                    if not _is_packed(folder, name):
                        raise
            if self._done < first + len(some):
                self._done = first + len(some)
                self._progress(self._done, self._total)
            said = _told_of(folder, name)
            self.refused |= said["refused"]
            yield from said["rows"]
        # What an earlier call left of shards that are no longer wanted.
        for loose in folder.glob("*.parts"):
            shutil.rmtree(loose, ignore_errors=True)

    def _pack(self, folder: Path, name: str, clips: Sequence[AcceptedClip]) -> None:
        """Write a shard, from files that are kept until it is whole."""
        loose = folder / f"{name}.parts"
        before = dict(self.refused)
        rows = list(self.mp4s(loose, clips))
        refused = {key: why for key, why in self.refused.items() if key not in before}
        with (
            whole_file(folder / f"{name}.tar") as unfinished,
            tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for row in rows:
                _add(tar, f"{row['id']}.mp4", (loose / row["video_path"]).read_bytes())
                said = {key: value for key, value in row.items() if key in ("caption", "id")}
                _add(tar, f"{row['id']}.json", json.dumps(said, ensure_ascii=False).encode())
        sizes = {row["id"]: {key: row[key] for key in ("width", "height", "duration")} for row in rows}
        # Of a shard's time of change the list says nothing: a copy has another one.
        indexed = [{**row, **sizes[row["id"]]} for row in read_shard(str(folder / f"{name}.tar")).rows] if rows else []
        kept = [{"shard": f"{name}.tar", **{k: x for k, x in row.items() if k != "shard_modified"}} for row in indexed]
        write_atomic(folder / f"{name}.json", json.dumps({"rows": kept, "refused": refused}).encode())
        shutil.rmtree(loose, ignore_errors=True)

    def _written(self, folder: Path, clips: Sequence[AcceptedClip]) -> Iterator[tuple[AcceptedClip, str | None]]:
        """(clip, why it is not written), in their order; several are worked on at once."""
        upcoming = iter(clips)
        with ThreadPoolExecutor(self.workers) as pool:
            pending: list[tuple[AcceptedClip, Future[str | None]]] = []
            try:
                while True:
                    for clip in islice(upcoming, self.workers + 1 - len(pending)):
                        pending.append((clip, pool.submit(self._write, folder, clip)))
                    if not pending:
                        return
                    clip, future = pending.pop(0)
                    yield clip, future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _write(self, folder: Path, clip: AcceptedClip) -> str | None:
        """Write one clip; returns why it cannot be."""
        path = folder / self._name(clip)
        if path.is_file():
            return None
        shape = clip.shape(self.shape)
        try:
            read = read_clip(clip.path, shape, start=clip.start, silent="zeros", edit=clip.edit)
            if self.settings.crf:
                crf, rate = self.settings.crf, shape.sample_rate
                # Of several threads the encoder makes other bytes on machines with other numbers of cores.
                data = encode_mp4(path, read.pictures, read.audio, shape.fps, rate, crf=crf, threads=1, preset=PRESET)
            else:
                data = encode_exact_mp4(path, read.pictures, read.audio, shape.fps, shape.sample_rate)
        except UnreachableError:
            raise
        except MovaError as error:
            return str(error)
        try:
            with whole_file(path) as unfinished:
                unfinished.write_bytes(data)
                verify_clip(unfinished, clip, shape)
        except FlawedClipError as error:
            return f"{clip.path}: as it was written, {error}"
        return None

    def _name(self, clip: AcceptedClip) -> str:
        facts = [VERSION, clip.edit.facts, asdict(clip.shape(self.shape)), self.settings.crf, av.__version__]
        return f"{clip.id[:2]}/{clip.id}-{_hash(facts)}.mp4"

    def _told(self, clip: AcceptedClip) -> dict[str, Any]:
        shape = clip.shape(self.shape)
        size = {"width": shape.width, "height": shape.height, "duration": shape.duration}
        return {"caption": clip.caption, "id": clip.id, **size}


def verify_clip(path: Path, clip: AcceptedClip, shape: ClipConfig) -> None:
    """Raise FlawedClipError unless a written file holds the clip: each picture in its size and at its time, and the
    film's sound within 5 ms of its place. Both are decoded here by themselves, without what read the clip.
    """
    count, rate = 0, exact_rate(shape.fps)
    try:
        with av.open(str(path)) as container:
            for count, frame in enumerate(container.decode(video=0), start=1):
                if (frame.width, frame.height) != (shape.width, shape.height):
                    raise FlawedClipError(f"its pictures are {frame.width}x{frame.height}")
                if frame.time is None or abs(frame.time - (count - 1) / rate) > 1e-4:
                    raise FlawedClipError(f"picture {count} is at {frame.time} s")
        if count != shape.frames:
            raise FlawedClipError(f"it has {count} pictures, not {shape.frames}")
        flaw = sound_offset(path, clip.path, clip.start - clip.edit.sound_shift, shape.duration).flaw
    except FlawedClipError:
        raise
    except (av.FFmpegError, MovaError) as error:
        raise FlawedClipError(f"it cannot be verified ({error})") from None
    if flaw:
        raise FlawedClipError(flaw)


def _is_packed(folder: Path, name: str) -> bool:
    """Whether a shard is whole: what is told of it is written last."""
    return (folder / f"{name}.json").is_file() and (folder / f"{name}.tar").is_file()


def _told_of(folder: Path, name: str) -> dict[str, Any]:
    """{"rows": of a shard's clips, "refused": {id: why} of those that are not in it}."""
    return json.loads((folder / f"{name}.json").read_bytes())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file without time, owner or rights of its own: the same files make the same shard."""
    facts = tarfile.TarInfo(name)
    facts.size, facts.mode = len(data), 0o644
    tar.addfile(facts, io.BytesIO(data))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
