"""One unit's work: cut it into clips, then measure of each clip what the filters ask for, until one drops it.

What the ledger has is not made again. A clip is decoded once at most, for all its scores, and let go before the next.
"""

import hashlib
import json
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from mova_engine.config.curate import CurateConfig
from mova_engine.curation.clip_labels import labels_of
from mova_engine.curation.clip_prints import PRINTS, prints_of
from mova_engine.curation.cut_signals import SIGNAL_COLUMNS
from mova_engine.curation.engine_work import Beat, Function, StopRunError
from mova_engine.curation.filter_columns import columns_of
from mova_engine.curation.ledger import CLIP, Ledger, LedgerError, LedgerPart, LedgerStep, Row
from mova_engine.curation.unit_cut import cut_unit
from mova_engine.curation.unit_steps import CUT, DECODE, UnitSteps
from mova_engine.curation.units import ClipWindow, Unit, UnitCut
from mova_engine.curation.verdicts import Judge
from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.opened_runner import open_runner
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.score_table import SCORES


@dataclass(frozen=True)
class UnitReport:
    """What a unit's run did. clips: of the unit; alive: those that no filter drops so far. seconds, measured: {step:
    time spent in it, clips that it ran on}; DECODE is reading clips for their scores. film: seconds of the unit.
    host: where it ran.
    """

    clips: int = 0
    alive: int = 0
    film: float = 0.0
    host: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    measured: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class UnitWork:
    """The work of a run, as it is sent to workers. out: absolute. order: of the filters."""

    out: Path
    config: CurateConfig
    order: tuple[str, ...]
    steps: UnitSteps

    def opened(self) -> Function:
        """Open what all units share. Networks are loaded when a clip first needs them."""
        _one_thread()
        judge = Judge.of(self.config.filters, self.config.marks, self.config.also, self.order)
        tools = UnitTools(self, Ledger(self.out / "ledger"), judge, open_runner(self.config))
        return lambda unit, beat: run_unit(tools, unit, beat)


@dataclass(frozen=True)
class UnitTools:
    """What one worker has opened."""

    work: UnitWork
    ledger: Ledger
    judge: Judge
    runner: ScoreRunner


def run_unit(tools: UnitTools, unit: Unit, beat: Beat) -> UnitReport:
    """Do what is missing of a unit. What was measured is stored also where it is interrupted.

    Raises MovaError for a unit that cannot be read, and StopRunError where the ledger cannot be written.
    """
    done = _Done()
    try:
        cut = _cut(tools, unit, beat, done)
        alive = 0
        scores = _UnitScores(tools, unit)
        try:
            for clip, signals in zip(cut.clips, cut.signals, strict=True):
                row = labels_of(unit, clip, cut.facts) | {name: signals.get(name) for name in SIGNAL_COLUMNS}
                alive += scores.measure(clip, row, beat, done)
        finally:
            scores.store(cut.clips)
    except LedgerError as error:
        raise StopRunError(str(error)) from None
    film = float(cut.facts["seconds"])
    return UnitReport(len(cut.clips), alive, film, socket.gethostname(), done.seconds, done.measured)


class _Done:
    """Seconds and clips by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.measured: dict[str, int] = {}

    def add(self, step: str, seconds: float, clips: int = 1) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        self.measured[step] = self.measured.get(step, 0) + clips


def _cut(tools: UnitTools, unit: Unit, beat: Beat, done: _Done) -> UnitCut:
    part = tools.ledger.read(tools.work.steps.cut, unit.key)
    if part is not None:
        return cut_of_part(part)
    beat(CUT)
    begun = time.perf_counter()
    config = tools.work.config
    cut = cut_unit(unit, config.cut, config.shape.frames, config.shape.fps)
    rows = [
        {CLIP: clip.id(unit.digest), "window": json.dumps(clip.as_json(), sort_keys=True), **_floats(signals)}
        for clip, signals in zip(cut.clips, cut.signals, strict=True)
    ]
    tools.ledger.write(tools.work.steps.cut, unit.key, LedgerPart(rows, cut.facts))
    done.add(CUT, time.perf_counter() - begun, len(cut.clips))
    return cut


def cut_of_part(part: LedgerPart) -> UnitCut:
    """What was cut, from its part of the ledger."""
    clips = tuple(ClipWindow.from_json(json.loads(row["window"])) for row in part.rows)
    known = ({name: value for name, value in row.items() if name not in (CLIP, "window")} for row in part.rows)
    signals = tuple({name: value for name, value in row.items() if value is not None} for row in known)
    return UnitCut(part.facts, clips, signals)


class _UnitScores:
    """The rows of a unit's clips by step: those of the ledger, and those that are measured now."""

    def __init__(self, tools: UnitTools, unit: Unit) -> None:
        self._tools, self._unit = tools, unit
        steps = tools.work.steps
        self._scores = {name: read_scores(tools.ledger, tools.work, unit, name) for name in steps.scores}
        self._prints = read_rows(tools.ledger, steps.prints, unit)
        self._changed: set[str] = set()

    def measure(self, clip: ClipWindow, row: dict[str, Any], beat: Beat, done: _Done) -> bool:
        """Measure what a clip needs. row: its labels and signals, which the scores join. Whether no filter drops it."""
        identity = str(row[CLIP])
        for name, known in self._scores.items():
            if identity in known:
                _join(row, SCORES[name], known[identity])
        reading = _Reading(self._unit, clip, done)
        while names := self._needed(row, identity):
            score = SCORES[names[0]]
            beat(score.name)
            found = self._measured(score, reading, done)
            self._scores[score.name][identity] = {CLIP: identity, **found, **self._prompt(score)}
            self._changed.add(score.name)
            _join(row, score, found)
        alive = self._tools.judge.verdict(row)[0] != "drop"
        if alive and self._tools.work.steps.prints and identity not in self._prints:
            beat(PRINTS)
            self._prints[identity] = {CLIP: identity, **self._printed(reading, done)}
            self._changed.add(PRINTS)
        return alive

    def _needed(self, row: Row, identity: str) -> tuple[str, ...]:
        judge = self._tools.judge
        every = self._tools.work.config.measure == "all"
        wanted = filter(columns_of, judge.scores) if every else judge.scores_needed(row)
        return tuple(name for name in wanted if identity not in self._scores[name])

    def _measured(self, score: Score, reading: "_Reading", done: _Done) -> Row:
        clip = reading.clip()
        if clip is None:
            return {"reason": reading.why}
        found = self._tools.runner.measure(clip, [score], self._unit.file.caption or None)
        done.add(score.name, found.seconds[score.name])
        if found.passing:
            raise MovaError(f"{score.name}: {found.reasons[score.name]}")
        return {**_floats(found.values), "reason": found.reasons.get(score.name)}

    def _printed(self, reading: "_Reading", done: _Done) -> Row:
        clip = reading.clip()
        if clip is None:
            return {"reason": reading.why}
        begun = time.perf_counter()
        found = prints_of(clip)
        done.add(PRINTS, time.perf_counter() - begun)
        return found

    def _prompt(self, score: Score) -> Row:
        return {"prompt": prompt_digest(self._unit)} if score.prompt else {}

    def store(self, clips: Iterable[ClipWindow]) -> None:
        """Write the parts that have more rows than before: clips of this unit in their order, then those of others."""
        order = [clip.id(self._unit.digest) for clip in clips]
        steps = self._tools.work.steps
        for name in sorted(self._changed):
            step, rows = (steps.prints, self._prints) if name == PRINTS else (steps.scores[name], self._scores[name])
            ids = [*(each for each in order if each in rows), *sorted(rows.keys() - set(order))]
            if step is not None:
                self._tools.ledger.write(step, self._unit.key, LedgerPart([rows[each] for each in ids]))


class _Reading:
    """A clip that is decoded when it is first asked for. why: the reason where that failed."""

    def __init__(self, unit: Unit, window: ClipWindow, done: _Done) -> None:
        self._unit, self._window, self._done = unit, window, done
        self._clip: DecodedClip | None = None
        self.why = ""

    def clip(self) -> DecodedClip | None:
        """The clip, in this process: a worker that a file ends is replaced. None: it cannot be read."""
        if self._clip is None and not self.why:
            begun = time.perf_counter()
            path, window = self._unit.file.path, self._window
            seconds = window.frames / Fraction(window.fps).limit_denominator(1001)
            try:
                self._clip = DecodedClip.read(path, start=window.start, seconds=seconds, crop=window.crop)
            except MovaError as error:
                self.why = str(error).removeprefix(f"{path}: ")
            self._done.add(DECODE, time.perf_counter() - begun)
        return self._clip


def read_rows(ledger: Ledger, step: LedgerStep | None, unit: Unit) -> dict[str, Row]:
    """{clip_id: row} of what the ledger has of a step; without one {}."""
    part = None if step is None else ledger.read(step, unit.key)
    return {} if part is None else {row[CLIP]: row for row in part.rows}


def read_scores(ledger: Ledger, work: UnitWork, unit: Unit, score: str) -> dict[str, Row]:
    """{clip_id: row} of what the ledger has of a score; of one that reads captions, of this caption."""
    of_caption = prompt_digest(unit) if SCORES[score].prompt else None
    rows = read_rows(ledger, work.steps.scores[score], unit)
    return {clip: row for clip, row in rows.items() if row.get("prompt") == of_caption}


def prompt_digest(unit: Unit) -> str:
    """What of a caption a score's row is kept by."""
    return hashlib.sha256(unit.file.caption.encode()).hexdigest()[:16]


def _join(row: dict[str, Any], score: Score, found: Row) -> None:
    """A score's columns; what is known of the clip stays."""
    for name in columns_of(score.name):
        row[name] = found.get(name)


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _one_thread() -> None:
    """Have this worker compute by one thread: there are as many workers as cores."""
    import torch

    torch.set_num_threads(1)
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(1)
