"""A curation from films to a table of clips: lists units, has an engine do them, and collects what was found."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from mova_engine.config.curate import CurateConfig
from mova_engine.curation.collect import Collector, table_bytes
from mova_engine.curation.curation_folder import CurationFolder
from mova_engine.curation.curation_progress import CurationProgress
from mova_engine.curation.engine_work import Outcome
from mova_engine.curation.engines import Engine, opened_engine
from mova_engine.curation.judging import Judging, read_order
from mova_engine.curation.ledger import CLIP, Part
from mova_engine.curation.source_lists import read_sources
from mova_engine.curation.timings import Timings
from mova_engine.curation.unit_listing import Failure, Listed, ListWork, list_units
from mova_engine.curation.unit_run import UnitWork
from mova_engine.curation.unit_steps import UnitSteps
from mova_engine.curation.units import Unit
from mova_engine.data.text import shown
from mova_engine.distributed.processes import read_launch
from mova_engine.distributed.stop_signals import ended_at_once
from mova_engine.errors import MovaError, counted, require_package
from mova_engine.files.atomic import clear_stale, write_atomic
from mova_engine.ops import resolve
from mova_engine.scores.opened_runner import open_runner
from mova_engine.scores.score_file import known_score
from mova_engine.scores.score_runner import ScoreRunner

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class CurationResult:
    """units: that there are, failures: those of them, and of the files, that failed. clips, kept: how many. too_many:
    whether more failed than `most_failed` allows.
    """

    units: int
    failures: tuple[Failure, ...]
    clips: int
    kept: int
    too_many: bool


class Curation:
    """A run of curation, by its settings:

    from mova_engine import Curation, load_curation
    result = Curation(load_curation("curate-laptop", raw=["films"], out="curated")).run()

    say: takes the lines that tell how far it is; default: none are told.
    """

    def __init__(self, config: CurateConfig, say: Callable[[str], None] | None = None) -> None:
        """Raises MovaError for filters that cannot be read."""
        out = config.out.absolute()
        raw = tuple(path.absolute() for path in config.raw)
        weights = None if config.weights is None else config.weights.absolute()
        self.config = replace(config, out=out, raw=raw, weights=weights)
        self.folder = CurationFolder(out)
        self._say = say or (lambda line: None)
        given = None if config.order is None else read_order(config.order)
        self.judging = Judging.of(config, given or self.folder.order(tuple(config.filters)))

    def run(self) -> CurationResult:
        """Do what is missing, and write the folder's tables.

        A stop signal ends it where it is, by `SystemExit`; the same run goes on. Raises MovaError, before any film is
        read, where this machine or the folder lacks what it needs.
        """
        require_package("pyarrow", "mova curate")
        if read_launch().world > 1:
            raise MovaError("curation divides its work itself: start one process, with --workers or --engine ray")
        self.folder.check(self.config.raw)
        runner = open_runner(self.config, self.folder.digests.of)
        self._check_scores(runner)
        files = read_sources(self.config.raw)
        order = tuple(each.name for each in self.judging.judge.filters)
        self.folder.begin(self.config, order)
        clear_stale(self.folder.out)
        work = UnitWork(
            self.folder.out, self.config, order, UnitSteps.of(self.config, self.judging.judge.scores, runner)
        )
        with ended_at_once(lambda: "the same command goes on") as stop:
            with opened_engine(self.config, stop) as engine:
                listed = list_units(engine, ListWork(self.folder.out, self.config.cut.unit_seconds), files)
                self._tell(listed)
                failures = (*listed.failures, *self._run_units(engine, work, listed.units))
            return self._collected(work, listed, failures)

    def _check_scores(self, runner: ScoreRunner) -> None:
        """MovaError for a score that this machine cannot measure: that must not become each clip's reason."""
        for name in self.judging.judge.scores:
            score = known_score(name)
            if not score.columns or score.transcripts:
                raise MovaError(f"{name} is no score that curation can measure of a clip: leave it out")
            if reason := runner.lacking(score):
                raise MovaError(f"the filters need the score {name}, which cannot be measured: {reason}")
            if score.check:
                resolve(score.check)()

    def _tell(self, listed: Listed) -> None:
        self._say(f"{counted(len(listed.units), 'unit')} of films")
        for name, first in listed.twice.items():
            self._say(f"{shown(name)}: the same content as {shown(first)}; it is left out")
        for each in listed.failures:
            self._say(_told(each))

    def _run_units(self, engine: Engine, work: UnitWork, units: Sequence[Unit]) -> Iterator[Failure]:
        """Run what is not put aside; yields the failures in the order of the units."""
        ledger, steps = self.folder.ledger, work.steps
        aside = ledger.present(steps.failed)
        if self.config.retry:
            for key in aside:
                ledger.remove(steps.failed, key)
            aside = set()
        todo = [unit for unit in units if unit.key not in aside]
        cut = ledger.present(steps.cut)
        fresh = sum(unit.key not in cut for unit in todo)
        progress = CurationProgress(len(todo), fresh, self._say)
        timings = Timings(self.folder.timings)
        try:
            for outcome in engine(work, todo):
                if outcome.reason:
                    self._put_aside(work, outcome)
                    progress.add(None)
                else:
                    timings.add(outcome.item.key, outcome.result)
                    progress.add(outcome.result)
        finally:
            timings.write()
        failed = ledger.present(steps.failed)
        for unit in units:
            if unit.key in failed and (part := ledger.read(steps.failed, unit.key)) is not None:
                row = part.rows[0]
                yield Failure(unit.name, row["step"], row["reason"], row["attempts"])

    def _put_aside(self, work: UnitWork, outcome: Outcome) -> None:
        unit = outcome.item
        step = "cut" if self.folder.ledger.read(work.steps.cut, unit.key) is None else "scores"
        reason = outcome.reason.removeprefix(f"{unit.file.path}: ")
        row = {CLIP: "", "step": step, "reason": reason, "attempts": outcome.attempts}
        self.folder.ledger.write(work.steps.failed, unit.key, Part([row]))
        self._say(_told(Failure(unit.name, step, reason, outcome.attempts)))

    def _collected(self, work: UnitWork, listed: Listed, failures: Sequence[Failure]) -> CurationResult:
        reasons = {each.name: each.reason for each in failures}
        failed = {unit.key: reasons[unit.name] for unit in listed.units if unit.name in reasons}
        table = self._judged(Collector(work, self.folder.ledger, failed).table(listed.units))
        write_atomic(self.folder.clips, table_bytes(table))
        lines = (json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in failures)
        write_atomic(self.folder.failures, "".join(lines).encode())
        kept = table["verdict"].to_pylist().count("keep")
        tried = len(listed.units) + len(listed.failures)
        return CurationResult(
            len(listed.units), tuple(failures), table.num_rows, kept, len(failures) > self.config.most_failed * tried
        )

    def _judged(self, table: "pa.Table") -> "pa.Table":
        for name, column in self.judging.columns(table).items():
            table = table.append_column(name, column)
        return table.replace_schema_metadata(self.judging.metadata())


def _told(failure: Failure) -> str:
    tries = counted(failure.attempts, "attempt")
    return f"{shown(failure.name)}: failed in {failure.step} after {tries}: {shown(failure.reason)}"
