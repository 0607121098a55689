"""What a ledger has of all units, joined row by row: as it is defined, and slowly. With drawn ledgers to be joined."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa

from mova_engine.config.curation_recipes import load_curation
from mova_engine.curation.clip_labels import labels_of
from mova_engine.curation.clip_prints import prints_step
from mova_engine.curation.collect import Collector
from mova_engine.curation.cut_signals import SIGNAL_COLUMNS
from mova_engine.curation.filter_columns import columns_of
from mova_engine.curation.ledger import CLIP, Ledger, LedgerPart, LedgerStep
from mova_engine.curation.unit_run import UnitWork, cut_of_part, prompt_digest, read_rows, read_scores
from mova_engine.curation.unit_steps import UnitSteps
from mova_engine.curation.units import KINDS, ClipWindow, SourceFile, Unit
from mova_engine.scores.score_table import SCORES


def collected_rows(collector: Collector, units: list[Unit]) -> tuple[pa.Table, dict, float]:
    """The table, fingerprints and seconds of `Collector.collected`."""
    parts = {(unit.digest, unit.file.name) for unit in units}
    counts = Counter(digest for digest, _ in parts)
    rows, prints, seconds, seen = [], {}, 0.0, set()
    for unit in units:
        part = collector.ledger.read(collector.work.steps.cut, unit.key)
        if part is None:
            continue
        cut = cut_of_part(part)
        seconds += float(cut.facts["seconds"])
        for row in _rows(collector, unit, cut):
            if counts[unit.digest] == 1 or row[CLIP] not in seen:
                rows.append(row)
                seen.add(row[CLIP])
        prints |= read_rows(collector.ledger, collector.work.steps.prints, unit)
    found = {clip: (row.get("pictures"), row.get("sound")) for clip, row in prints.items()}
    return pa.Table.from_pylist(rows, collector._schema()), found, seconds


def _rows(collector, unit, cut):
    names = collector.work.steps.scores
    scores = {name: read_scores(collector.ledger, collector.work, unit, name) for name in names}
    for clip, signals in zip(cut.clips, cut.signals, strict=True):
        row = labels_of(unit, clip, cut.facts)
        found = {name: rows[row[CLIP]] for name, rows in scores.items() if row[CLIP] in rows}
        reasons = {name: each["reason"] for name, each in found.items() if each.get("reason")}
        if unit.key in collector.failed:
            reasons["unit"] = collector.failed[unit.key]
        x, y, width, height = clip.crop or (None, None, None, None)
        pad_width, pad_height = clip.pad or (None, None)
        yield {
            **row,
            "video_path": str(unit.file.path),
            "unit": unit.key,
            "crop_x": x,
            "crop_y": y,
            "crop_width": width,
            "crop_height": height,
            "pad_width": pad_width,
            "pad_height": pad_height,
            "cuts": list(clip.cuts),
            "speech": [{"start": start, "end": end} for start, end in clip.speech],
            **{column: each.get(column) for name, each in found.items() for column in columns_of(name)},
            **{name: signals.get(name) for name in SIGNAL_COLUMNS},
            "reasons": json.dumps(reasons, sort_keys=True, ensure_ascii=False),
            "caption": unit.file.caption,
        }


def drawn_ledger(folder: Path, units: int, clips: int, seed: int = 0, odd: bool = True) -> tuple[Collector, list[Unit]]:
    """A ledger in `folder` with so many units, of up to `clips` clips each. odd: with all that a run may leave: scores
    that were not measured, or in another order, or for another caption; reasons; parts of a film that overlap; units
    that failed, that hold nothing, or that were not cut. Otherwise everything is there.
    """
    rng, ledger = np.random.default_rng(seed), Ledger(folder / "ledger")
    prompted = next(name for name, score in SCORES.items() if score.prompt and columns_of(name))
    steps = {name: LedgerStep.made_of(f"score-{name}", {}) for name in ("dnsmos", "sound-quality", prompted)}
    steps = UnitSteps(LedgerStep.made_of("cut", {}), steps, prints_step(), LedgerStep.made_of("failed", {}))
    work = UnitWork(folder, load_curation(raw=["films"], out=str(folder)), (), steps)
    found, failed = [], {}
    for number in range(units):
        # Of every third film two parts are listed, the second under another name.
        film = number - 1 if odd and number % 3 == 1 else number
        unit = Unit(
            SourceFile(Path(f"/films/{number}.mp4"), f"films/{number} é.mp4", "films", f"of {film}"), f"{film:064x}"
        )
        unit = Unit(unit.file, unit.digest, float(number - film), 600.0)
        found.append(unit)
        if odd and number % 7 == 5:
            continue
        _write_unit(ledger, steps, unit, 0 if odd and number % 7 == 6 else clips, rng, odd)
        if odd and rng.random() < 0.3:
            failed[unit.key] = "no sign of life"
    return Collector(work, ledger, failed), found


def _write_unit(ledger, steps, unit, clips, rng, odd):
    windows = [_window(number, rng, odd) for number in range(clips)]
    ids = [window.id(unit.digest) for window in windows]
    signals = [name for name in sorted(SIGNAL_COLUMNS) if not odd or rng.random() < 0.8]
    rows = [
        {CLIP: clip, "window": json.dumps(window.as_json(), sort_keys=True)}
        | {name: float(rng.random()) for name in signals if not odd or rng.random() < 0.8}
        for clip, window in zip(ids, windows, strict=True)
    ]
    ledger.write(steps.cut, unit.key, LedgerPart(rows, {"seconds": 600.25, "width": 1280, "height": 720}))
    for name, step in steps.scores.items():
        rows = []
        for clip in rng.permutation(ids).tolist() if odd and rng.random() < 0.5 else ids:
            if odd and rng.random() < 0.2:
                continue
            row = {CLIP: clip, **{column: float(rng.random()) for column in columns_of(name)}, "reason": None}
            if odd and rng.random() < 0.2:
                row = {CLIP: clip, "reason": ("there is no sound", "naïve 🎬", "")[rng.integers(3)]}
            if SCORES[name].prompt:
                row["prompt"] = "another" if odd and rng.random() < 0.3 else prompt_digest(unit)
            rows.append(row)
        if rows or rng.random() < 0.5:
            ledger.write(step, unit.key, LedgerPart(rows))
    rows = [
        {CLIP: clip, "pictures": f"{rng.integers(2**60):064x}", "sound": f"{rng.integers(2**60):048x}"}
        if not odd or rng.random() < 0.7
        else {CLIP: clip, "reason": "it cannot be read"}
        for clip in ids
    ]
    ledger.write(steps.prints, unit.key, LedgerPart(rows))


def _window(number, rng, odd):
    # Parts of a film that overlap have windows in common.
    start = Fraction(8_041_667 * number, 1_000_000) if not odd or number % 2 else Fraction(8 * number)
    if odd and number % 4 == 3:
        start += Fraction(int(rng.integers(1000)), 1_000_000)
    crop = (0, 60, 1280, 600) if number % 3 else None
    stretches = tuple((float(k), float(k) + rng.random()) for k in range(rng.integers(3)))
    cuts = tuple(float(x) for x in np.sort(rng.random(rng.integers(3))))
    pad = (1280, 720) if odd and number % 5 == 1 else None
    return ClipWindow(start, 193, 24.0, KINDS[number % 4], crop, len(cuts) + 1, cuts, stretches, pad)
