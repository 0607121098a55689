"""Numbers of sets for a bench, such as an inception score: of each category's clips, and summed up by its rule."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.errors import counted
from mova_engine.evaluation.benches.bench_items import AskedNumber, Bench, BenchItem
from mova_engine.evaluation.benches.bench_summary import NO_FILE, BenchNumber, joined_categories
from mova_engine.evaluation.benches.clip_matching import ItemFiles
from mova_engine.evaluation.column_summary import ColumnSummary
from mova_engine.evaluation.measured_clips import MeasuredClips
from mova_engine.evaluation.set_summary import number_of_evidence
from mova_engine.scores.score_declaration import Score, SetNumber

_NO_RECORDINGS = "the bench has no recordings to compare with"


@dataclass(frozen=True)
class BenchSets:
    """What one score keeps of a bench's clips and, where it has them, of its recordings."""

    bench: Bench
    found: ItemFiles
    clips: MeasuredClips
    recordings: MeasuredClips | None
    score: Score
    convention: str

    def number(self, asked: AskedNumber, number: SetNumber) -> BenchNumber:
        """The number of each category's clips, and their mean or the number of all clips together, by the rule."""
        items = self.bench.asked(asked.categories)
        categories = tuple(dict.fromkeys(item.category for item in items))
        found = {name: self._of(asked.name, number, [x for x in items if x.category == name]) for name in categories}
        parts = {name: summary for name, (summary, _) in found.items()}
        if asked.rule == "categories" and len(parts) > 1:
            notes = tuple(dict.fromkeys(note for _, note in found.values() if note))
            return BenchNumber(asked, joined_categories(asked.name, parts), parts, notes=notes)
        total, note = self._of(asked.name, number, items)
        return BenchNumber(asked, total, parts, notes=(note,) if note else ())

    def _of(self, name: str, number: SetNumber, items: Sequence[BenchItem]) -> tuple[ColumnSummary, str]:
        """The number of these clips, and what weakens it."""
        if number.reference and self.recordings is None:
            return ColumnSummary(name, len(items), 0, reasons={_NO_RECORDINGS: len(items)}), ""
        chosen, reasons = self._chosen(number, items)
        scored = len(items) - reasons.total()
        if not chosen:
            return ColumnSummary(name, len(items), 0, reasons=dict(reasons)), ""
        others: list[Path] = []
        if number.reference == "pairs":
            others = [item.reference for item, _ in chosen if item.reference is not None]
        elif number.reference:
            others = sorted({x.reference for x in items if x.reference is not None and self._recorded(x)})
            if not others:
                return ColumnSummary(name, len(items), 0, reasons={**reasons, _NO_RECORDINGS: scored}), ""
        real = self.recordings
        found = number_of_evidence(
            number,
            [self.clips.evidence(path, self.score) for _, path in chosen],
            [real.evidence(path, self.score) for path in others] if number.reference and real is not None else None,
            self.convention,
        )
        if found.value is None:
            return ColumnSummary(name, len(items), 0, reasons={**reasons, found.reason: scored}), ""
        against = f"against {counted(len(set(others)), 'recording')}" if others else ""
        summary = ColumnSummary(name, len(items), scored, found.value, found.interval, reasons=dict(reasons))
        return summary, "; ".join(note for note in (against, found.note) if note)

    def _chosen(self, number: SetNumber, items: Sequence[BenchItem]) -> tuple[list[tuple[BenchItem, Path]], Counter]:
        """The files of which the score keeps evidence, and why clips have none."""
        files = dict(zip(self.found.items, self.found.files, strict=True))
        chosen: list[tuple[BenchItem, Path]] = []
        reasons = Counter[str]()
        for item in items:
            own = [self.clips.folder / file for file in files[item]]
            kept = [path for path in own if self._kept(self.clips, path)]
            if not own:
                reasons[NO_FILE] += 1
            elif not kept:
                reasons[self.clips.record(own[0], self.score)["reason"] or "the score keeps nothing of it"] += 1
            elif number.reference == "pairs" and not self._recorded(item):
                reasons["no recording to compare it with"] += 1
            else:
                chosen += [(item, path) for path in kept]
        return chosen, reasons

    def _recorded(self, item: BenchItem) -> bool:
        real = self.recordings
        return real is not None and item.reference is not None and self._kept(real, item.reference)

    def _kept(self, clips: MeasuredClips, path: Path) -> bool:
        return clips.record(path, self.score)["evidence"] is not None
