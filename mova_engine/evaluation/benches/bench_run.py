"""A bench on a folder of clips: which of its clips are there, what is measured of each, and the numbers it asks for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mova_engine.errors import MovaError
from mova_engine.evaluation.benches.bench_items import AskedNumber, Bench, BenchItem
from mova_engine.evaluation.benches.bench_sets import BenchSets
from mova_engine.evaluation.benches.bench_summary import BenchNumber, Row, number_of_rows
from mova_engine.evaluation.benches.clip_matching import ItemFiles, match_files
from mova_engine.evaluation.clip_records import ClipRecords, find_clips
from mova_engine.evaluation.column_summary import ColumnSummary
from mova_engine.evaluation.measured_clips import MeasuredClips, measure_clips
from mova_engine.files.digests import Digests
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_runner import ScoreRunner


@dataclass(frozen=True)
class BenchResult:
    """What a bench found. numbers: those it asks for, then the others that were measured of its clips."""

    bench: Bench
    found: ItemFiles
    numbers: list[BenchNumber]

    def facts(self) -> dict[str, Any]:
        """What a result file says of it."""
        return {
            "name": self.bench.name,
            "source": str(self.bench.source),
            "notes": self.bench.notes,
            "asked": len(self.found.items),
            "missing": [{"id": item.id, "category": item.category} for item in self.found.missing],
            "extra": [file.as_posix() for file in self.found.extra],
            "numbers": [asdict(number) for number in self.numbers],
        }


class BenchRun:
    """The files of a folder as clips of a bench. folder, leave_out: as of `find_clips`.

    Raises MovaError where no file is a clip of the bench, and as `match_files`.
    """

    def __init__(self, bench: Bench, folder: Path, leave_out: Path) -> None:
        self.bench, self.folder = bench, folder
        files = [path.relative_to(folder) for path in find_clips(folder, leave_out=leave_out)]
        self.found = match_files(files, bench.items)
        self.item_of = self.found.item_of
        if not self.item_of:
            shown = ", ".join(item.id for item in bench.items[:3])
            raise MovaError(f"{folder}: no file in it begins with an id of {bench.source} ({shown}, ...)")

    def listed(self, records: ClipRecords, digests: Digests) -> MeasuredClips:
        """The clips that are there, with their prompts as captions."""
        files = [self.folder / file for file in self.item_of]
        captions = {self.folder / file: item.prompt for file, item in self.item_of.items() if item.prompt.strip()}
        found = MeasuredClips.listed(self.folder, files, captions, records, digests)
        found.clip_of = {self.folder / file: f"{item.category}/{item.id}" for file, item in self.item_of.items()}
        return found

    def said(self, clips: MeasuredClips) -> dict[Path, str]:
        """What is said in the clips of which the bench knows it."""
        said = {path: self._item(clips, path).transcript for path in clips.files}
        return {path: text for path, text in said.items() if text}

    def references(self, records: ClipRecords, digests: Digests) -> MeasuredClips | None:
        """The recordings of the bench's clips; None where it has none."""
        files = sorted({item.reference for item in self.bench.items if item.reference is not None})
        if not files:
            return None
        folder = self.bench.source.parent
        return MeasuredClips.listed(folder, files, {}, records, digests)

    def asks(self, score: Score, category: str) -> bool:
        """Whether a score is measured of a category's clips: those of other categories are not asked for."""
        asked = [number for number in self.bench.numbers if number.score == score.name]
        return not asked or any(not number.categories or category in number.categories for number in asked)

    def measure(
        self,
        clips: MeasuredClips,
        scores: Sequence[Score],
        runner: ScoreRunner,
        digests: Digests,
        workers: int,
        say: Callable[[str], None],
    ) -> None:
        """Measure each category's clips by the scores that are asked of it."""
        for category in self.bench.categories:
            files = [path for path in clips.files if self._item(clips, path).category == category]
            chosen = [score for score in scores if self.asks(score, category)]
            for score in scores:
                if score not in chosen:
                    for path in files:
                        clips.not_asked[path, score.name] = f"not asked of {category}"
            if files and chosen:
                if len(self.bench.categories) > 1:
                    say(f"{category}:")
                measure_clips(replace(clips, files=files), chosen, runner, digests, workers, say)

    def _item(self, clips: MeasuredClips, path: Path) -> BenchItem:
        return self.item_of[path.relative_to(clips.folder)]

    def labels(self, clips: MeasuredClips, path: Path) -> Row:
        """What a clip's row says of its place in the bench."""
        item = self._item(clips, path)
        return {"id": item.id, "category": item.category}

    def result(
        self,
        clips: MeasuredClips,
        real: MeasuredClips | None,
        rows: Sequence[Row],
        summaries: Sequence[ColumnSummary],
        scores: Sequence[Score],
        skipped: Mapping[str, str],
        runner: ScoreRunner,
    ) -> BenchResult:
        """All numbers of the bench. summaries: of all files, which have the chance levels."""
        chance = {summary.column: summary.chance for summary in summaries}
        by_name = {score.name: score for score in scores}
        by_clip = {row["clip"]: row for row in rows}
        numbers: list[BenchNumber] = []
        for asked in self._all_numbers(scores):
            score = by_name.get(asked.score)
            if score is None:
                reason = skipped.get(asked.score, f"the score {asked.score} is not among those of this run")
                numbers.append(number_of_rows(self.bench, asked, self.found, by_clip, reason))
                continue
            of_set = next((number for number in score.set_numbers if number.name == asked.column), None)
            if of_set is not None:
                sets = BenchSets(self.bench, self.found, clips, real, score, score.convention(runner.asked))
                number = sets.number(asked, of_set)
                about: Any = of_set
            else:
                number = number_of_rows(self.bench, asked, self.found, by_clip)
                about = next(column for column in score.columns if column.name == asked.column)
            number = replace(number, total=replace(number.total, chance=chance.get(asked.column)))
            followed = score.convention(runner.asked)
            numbers.append(replace(number, unit=about.unit, better=about.better, convention=followed))
        return BenchResult(self.bench, self.found, numbers)

    def _all_numbers(self, scores: Sequence[Score]) -> list[AskedNumber]:
        """What the bench asks for, then what else the scores give of the same clips."""
        asked = list(self.bench.numbers)
        known = {name for number in asked for name in (number.column, number.per)}
        for score in scores:
            of = next((number.categories for number in self.bench.numbers if number.score == score.name), ())
            names = [column.name for column in score.columns] + [number.name for number in score.set_numbers]
            asked += [AskedNumber(x, score.name, x, self.bench.rule, of) for x in names if x not in known]
        return asked
