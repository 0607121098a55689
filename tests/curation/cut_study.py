"""Counts what cutting finds of `source_films.SOURCE_SET`: `python -m curation.cut_study SHOTS`, in tests/.

All films are cut into clips of 49 pictures, so that nearly everything is seen, and for the words that clips cut into
clips of 193. A cut counts as found at its picture, a dissolve or a fade where the middle of what is found lies within.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from curation.source_films import SOURCE_SET, FilmTruth, write_film

from mova_engine.config.curate import CutSettings
from mova_engine.curation.unit_cut import cut_unit
from mova_engine.curation.units import SourceFile, Unit, UnitCut

FRAMES = 49
# Places a second at which speech is compared.
RATE = 100


def on_grid(intervals: list[tuple[float, float]], seconds: float) -> np.ndarray:
    """Whether each hundredth of a second lies within one of the intervals."""
    found = np.zeros(round(seconds * RATE) + RATE, bool)
    for first, last in intervals:
        found[round(first * RATE) : round(last * RATE)] = True
    return found


def counted(truth: FilmTruth, cut: UnitCut, told: Counter[str]) -> None:
    """Add a film's hits and misses."""
    spans = [(float(clip.start), float(clip.start) + clip.seconds) for clip in cut.clips]
    found = [tuple(each) for each in cut.facts["transitions"]]
    for kind, joint in zip(truth.kinds, truth.joints, strict=True):
        hits = [each for each in found if _is(each, joint)]
        told[kind] += 1
        told[f"{kind} found"] += bool(hits)
        found = [each for each in found if each not in hits]
    told["false transitions"] += len(found)
    heard = [
        (start + first, start + last)
        for clip, (start, _) in zip(cut.clips, spans, strict=True)
        for first, last in clip.speech
    ]
    seen, said, was_heard = (on_grid(each, truth.seconds) for each in (spans, truth.speech, heard))
    told["speech both"] += int((seen & said & was_heard).sum())
    told["speech either"] += int((seen & (said | was_heard)).sum())
    for clip, (start, stop) in zip(cut.clips, spans, strict=True):
        shots = [
            n
            for n in range(len(truth.crops))
            if _bounds(truth, n)[0] < stop - 0.03 and _bounds(truth, n)[1] > start + 0.01
        ]
        boxes = [truth.crops[n] for n in shots]
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
        x, y, width, height = clip.crop or (0, 0, truth.size[1], truth.size[0])
        wrong = max(abs(x - left), abs(y - top), abs(x + width - right), abs(y + height - bottom))
        told["clips"] += 1
        told["crops exact"] += wrong == 0
        told["crop pixels wrong"] = max(told["crop pixels wrong"], wrong)
        spoken = int((said & on_grid([(start, stop)], truth.seconds)).sum()) / RATE
        cuts = any(
            start + 0.01 < end and first < stop - 0.03 for first, end in truth.joints if (first, end) != (start, start)
        )
        told["kinds right"] += clip.kind == f"{'speech' if spoken >= 0.5 else 'other'}-{'cuts' if cuts else 'shot'}"
        told["starts exact"] += min(abs(start - time) for time in truth.times) < 1e-3


def edges_in_phrases(truth: FilmTruth, cut: UnitCut) -> tuple[int, int]:
    """How many starts and ends of clips lie in the middle of a phrase, and how many there are."""
    edges = [edge for clip in cut.clips for edge in (float(clip.start), float(clip.start) + clip.seconds)]
    return sum(first + 0.1 < edge < last - 0.1 for edge in edges for first, last in truth.speech), len(edges)


def _is(found: tuple[float, float], joint: tuple[float, float]) -> bool:
    if joint[0] == joint[1]:
        return max(abs(found[0] - joint[0]), abs(found[1] - joint[1])) < 2e-3
    return joint[0] <= sum(found) / 2 <= joint[1]


def _bounds(truth: FilmTruth, shot: int) -> tuple[float, float]:
    edges = [0.0, *truth.cuts, truth.seconds]
    return edges[shot], edges[shot + 1]


def main() -> None:
    """Print the counts."""
    settings = CutSettings(shots="transitions" if sys.argv[1:] == ["transitions"] else "content", aspect="pad")
    told: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, film in SOURCE_SET.items():
            truth = write_film(Path(folder) / name, film)
            one = Counter()
            unit = Unit(SourceFile(Path(truth.path), name, "set"), "")
            counted(truth, cut_unit(unit, settings, FRAMES), one)
            if settings.shots == "content":
                one["edges in phrases"], one["edges"] = edges_in_phrases(truth, cut_unit(unit, settings))
            worst = max(told["crop pixels wrong"], one.pop("crop pixels wrong"))
            sys.stdout.write(f"{name}: {dict(one)}\n")
            told.update(one)
            told["crop pixels wrong"] = worst
    sys.stdout.write(f"all: {dict(told)}\n")


if __name__ == "__main__":
    main()
