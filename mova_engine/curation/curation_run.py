"""A curation from films to a table of clips: lists units, has an engine do them, and collects what was found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from mova_engine.config.curate import CurateConfig
from mova_engine.curation.captions.clip_captioner import open_models
from mova_engine.curation.collect import Collector
from mova_engine.curation.curation_folder import CurationFolder
from mova_engine.curation.curation_outputs import CurationOutputs, Failure
from mova_engine.curation.curation_progress import CurationProgress, FilmsProgress
from mova_engine.curation.engine_work import Outcome
from mova_engine.curation.engines import Engine, opened_engine
from mova_engine.curation.funnel import Funnel
from mova_engine.curation.gathered_films import gather_films
from mova_engine.curation.judging import Judging, read_order
from mova_engine.curation.ledger import CLIP, LedgerPart
from mova_engine.curation.timings import Timings
from mova_engine.curation.unit_cut import check_cut
from mova_engine.curation.unit_run import UnitWork
from mova_engine.curation.unit_steps import CUT, UnitSteps
from mova_engine.curation.units import SourceFile, Unit
from mova_engine.distributed.processes import read_launch
from mova_engine.distributed.stop_signals import ended_at_once
from mova_engine.errors import MovaError, require_package
from mova_engine.files.atomic import clear_stale
from mova_engine.ops import resolve
from mova_engine.scores.opened_runner import open_runner
from mova_engine.scores.score_file import known_score
from mova_engine.scores.score_runner import ScoreRunner


@dataclass(frozen=True)
class CurationResult:
    """funnel: what became of all clips. failures: units that failed, and films of which there is none. too_many:
    whether these, or the kept clips without caption or file, are more than `most_failed` allows.
    """

    funnel: Funnel
    failures: tuple[Failure, ...]
    too_many: bool


class Curation:
    """A run of curation: `Curation(load_curation("curate-laptop", raw=["films"], out="curated")).run()`.

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
        check_cut(self.config.cut)
        if self.config.captions.wanted:
            open_models(self.config.captions)
        self._check_scores(runner)
        order = tuple(each.name for each in self.judging.judge.filters)
        steps = UnitSteps.of(self.config, self.judging.judge, runner)
        work = UnitWork(self.folder.out, self.config, order, steps)
        with ended_at_once(lambda: "the same command goes on") as stop:
            films = gather_films(
                self.config.raw,
                self.config.films.media,
                self.config.cut.unit_seconds,
                self.folder.out,
                seed=self.config.films.seed,
                threads=self.config.workers,
                progress=FilmsProgress(self._say),
            )
            self.folder.begin(self.config, order)
            clear_stale(self.folder.out)
            for line in films.lines():
                self._say(line)
            unread = [each for each in films.failed if not each.repeats]
            failures = [Failure(each.file.name, "list", _reason(each.file, each.reason), 1) for each in unread]
            with opened_engine(self.config, stop) as engine:
                failures += self._run_units(engine, work, films.units)
            return self._collected(work, films.units, len(unread), tuple(failures))

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
                # The same content may have had another name then.
                yield Failure(unit.name, row["step"], row["reason"], row["attempts"])

    def _put_aside(self, work: UnitWork, outcome: Outcome) -> None:
        unit = outcome.item
        step = CUT if self.folder.ledger.read(work.steps.cut, unit.key) is None else "scores"
        failure = Failure(unit.name, step, _reason(unit.file, outcome.reason), outcome.attempts)
        self.folder.ledger.write(work.steps.failed, unit.key, LedgerPart([{CLIP: "", **asdict(failure)}]))
        self._say(failure.line())

    def _collected(
        self, work: UnitWork, units: Sequence[Unit], unread: int, failures: tuple[Failure, ...]
    ) -> CurationResult:
        """unread: films of which there is no unit."""
        reasons = {each.name: each.reason for each in failures}
        failed = {unit.key: reasons[unit.name] for unit in units if unit.name in reasons}
        collected = Collector(work, self.folder.ledger, failed).collected(units)
        films, tried = len({unit.file.name for unit in units}) + unread, len(units) + unread
        outputs = CurationOutputs(self.folder, self.config, self.judging, self._say)
        funnel, unlisted = outputs.write(collected, films, tried, failures)
        most, kept = self.config.most_failed, funnel.verdicts["keep"]
        return CurationResult(funnel, failures, len(failures) > most * tried or unlisted > most * kept)


def _reason(file: SourceFile, reason: str) -> str:
    """Without the path, which the failure's name tells."""
    return reason.removeprefix(f"{file.path}: ")
