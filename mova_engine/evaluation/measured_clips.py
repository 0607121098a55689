"""Measures a folder of clips: what was measured before is read, the rest is decoded and scored, several at a time."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mova_engine.data.media.reader_process import FatalFileError
from mova_engine.data.text import shown
from mova_engine.errors import MovaError, counted
from mova_engine.evaluation.clip_records import ClipRecords
from mova_engine.evaluation.clip_transcripts import SpokenText
from mova_engine.files.digests import Digests
from mova_engine.ops import resolve
from mova_engine.scores.clip_reader import read_clip
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_runner import ClipScores, ScoreRunner


@dataclass
class MeasuredClips:
    """Clips of a folder with their records.

    keys: {file: SHA-256}; of a file that cannot be read, what no file has. captions: {file: caption} of those that have
    one. passing: {(SHA-256, score): reason} of what this run could not measure for a reason that is not kept.
    unreadable: {file: why}. spoken: {file: what is said and what was heard} in it. not_asked: {(file, score): why} of
    what is left out, whatever was measured of its content. clip_of: {file: its clip of a bench}, of which several files
    may be; {} without a bench.
    """

    folder: Path
    files: list[Path]
    keys: dict[Path, str]
    captions: dict[Path, str]
    records: ClipRecords
    passing: dict[tuple[str, str], str] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)
    spoken: dict[Path, SpokenText] = field(default_factory=dict)
    not_asked: dict[tuple[Path, str], str] = field(default_factory=dict)
    clip_of: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def listed(
        cls, folder: Path, files: list[Path], captions: dict[Path, str], records: ClipRecords, digests: Digests
    ) -> "MeasuredClips":
        """Files with their digests. One that cannot be read is a clip without numbers."""
        found = cls(folder, files, {}, captions, records)
        for path in files:
            try:
                found.keys[path] = digests.of(path)
            except MovaError as error:
                found.keys[path] = f"unreadable {path}"
                found.unreadable[path] = _why_unreadable(path, error)
        return found

    def name(self, path: Path) -> str:
        """A clip's name in tables: its path in the folder; of a recording that lies elsewhere, its whole path."""
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path).as_posix()

    def record(self, path: Path, score: Score) -> dict[str, Any]:
        """{"values", "reason", "evidence", "seconds", "decode_seconds", ...}; of what was not measured, its reason."""
        if reason := self.not_asked.get((path, score.name)):
            return _record({}, reason, None)
        if score.transcripts:
            return self._compared(path, score)
        found = self.records.find(self.keys[path], score, self.captions.get(path))
        if found is not None:
            return found
        reason = self.unreadable.get(path) or self.passing.get((self.keys[path], score.name), "it was not measured")
        return _record({}, reason, None)

    def _compared(self, path: Path, score: Score) -> dict[str, Any]:
        """The record of a score of transcripts, which takes no clip and is not kept."""
        spoken = self.spoken.get(path, SpokenText())
        if not spoken.said:
            return _record({}, 'what is said in it is not known: a key "transcript" in metadata.jsonl', None)
        if spoken.heard is None:
            return _record({}, "there is no transcript of what was heard", None)
        try:
            found = resolve(score.target)(spoken.said, spoken.heard, self.records.convention(score))
        except MovaError as error:
            return _record({}, str(error), None)
        return _record(found.values, found.reason or None, found.evidence)

    def with_evidence(self, score: Score) -> list[Path]:
        """The clips of which a score keeps evidence."""
        return [path for path in self.files if self.record(path, score)["evidence"] is not None]

    def evidence(self, path: Path, score: Score) -> Any:
        """What a score keeps of a clip."""
        if score.transcripts:
            return self._compared(path, score)["evidence"]
        return self.records.evidence(self.keys[path], score, self.captions.get(path))


def _why_unreadable(path: Path, error: MovaError) -> str:
    if path.is_symlink() and not path.exists():
        return f"a link to {shown(os.readlink(path))}, which is not there"
    return str(error).removeprefix(f"{path}: ")


def _record(values: dict[str, float], reason: str | None, evidence: Any) -> dict[str, Any]:
    return {"values": values, "reason": reason, "evidence": evidence, "seconds": 0.0, "decode_seconds": 0.0}


def measure_clips(
    clips: MeasuredClips,
    scores: Sequence[Score],
    runner: ScoreRunner,
    digests: Digests,
    workers: int,
    say: Callable[[str], None],
) -> None:
    """Measure what is missing of a folder's clips, `workers` of them at a time.

    Files of the same bytes (and captions, where a score reads them) are measured once. A file that cannot be read is a
    reason for each score. Raises MovaError, after the others, for files that changed meanwhile: nothing is kept of
    them.
    """
    for path in clips.files:
        if path in clips.unreadable:
            say(f"{shown(clips.name(path))}: {clips.unreadable[path]}")
    files = [path for path in clips.files if path not in clips.unreadable]
    scores = [score for score in scores if not score.transcripts]
    prompted = any(score.prompt for score in scores)
    once = {(clips.keys[path], clips.captions.get(path) if prompted else None): path for path in reversed(files)}
    lacking = {
        path: clips.records.missing(clips.keys[path], scores, clips.captions.get(path)) for path in once.values()
    }
    todo = {path: lacking[path] for path in files if lacking.get(path)}
    unfinished = {clips.keys[path] for path in todo}
    if before := sum(clips.keys[path] not in unfinished for path in files):
        say(f"{counted(before, 'clip')} of {len(clips.files)} measured before")
    runner.open({score for wanted in todo.values() for score in wanted})
    start, changed = time.monotonic(), []
    for done, (path, found) in enumerate(_measured(todo, clips, runner, workers), 1):
        if _is_same(path, clips.keys[path], digests):
            clips.records.store(clips.keys[path], todo[path], found, clips.captions.get(path))
            for name in found.passing:
                clips.passing[clips.keys[path], name] = found.reasons[name]
        else:
            changed.append(path)
        left = (time.monotonic() - start) / done * (len(todo) - done)
        say(f"[{done}/{len(todo)}] {shown(path.name)}, {left:.0f} s left")
    if changed:
        raise MovaError(
            f"{changed[0]}: changed while it was measured ({counted(len(changed), 'clip')}): run this again"
        )


def _is_same(path: Path, key: str, digests: Digests) -> bool:
    try:
        return digests.of(path) == key
    except MovaError:
        return False  # it is gone


def _measured(
    todo: dict[Path, list[Score]], clips: MeasuredClips, runner: ScoreRunner, workers: int
) -> Iterator[tuple[Path, ClipScores]]:
    """Each file with its scores, as they are done."""
    waiting, running = list(todo), {}
    pool = ThreadPoolExecutor(workers)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                path = waiting.pop(0)
                running[pool.submit(_scored, path, todo[path], runner, clips.captions.get(path))] = path
            ended: set[Future[ClipScores]]
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield running.pop(future), future.result()
    except BaseException:
        runner.stop()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _scored(path: Path, scores: list[Score], runner: ScoreRunner, caption: str | None) -> ClipScores:
    """The scores of one file; one that cannot be read gives each score that reason.

    That a file took too long or too much memory may be this machine's fault today: such a reason is not kept.
    """
    names = [score.name for score in scores]
    start = time.perf_counter()
    try:
        clip = read_clip(path)
    except MovaError as error:
        # The row names the file: the same reason of several files is one.
        reasons = dict.fromkeys(names, str(error).removeprefix(f"{path}: "))
        return ClipScores(reasons=reasons, passing=set(names) if isinstance(error, FatalFileError) else set())
    decode = time.perf_counter() - start
    found = runner.measure(clip, scores, caption)
    found.seconds["decode"] = decode
    return found
