"""Do sound and picture agree in generated bounce clips? Read from the mp4 files and, besides, only their captions.

Bounces seen and clicks heard (`bounce_events`) are matched one to one; what finds no partner counts against precision
(an extra click) or recall (a missing one). Beside each clip's own sound stand the sounds of other clips: chance.

    mova nano sync DIR [--json FILE]

DIR holds *.mp4 and, for pitch and colour, a metadata.jsonl or .json with their captions.
"""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from mova_engine.data.metadata import FILES, read_metadata
from mova_engine.data.synthetic.bounce import COLOURS
from mova_engine.errors import MovaError, counted
from mova_engine.scores.bounce_events import Events, observe

log = logging.getLogger(__name__)

TOLERANCES_MS = (84, 167)  # two frames, one latent frame, at 24 fps
# Seconds before the last frame from which a bounce cannot be told from a ball still falling, nor a click be called
# wrong: such events may pair but count neither as missing nor as extra.
EDGE = 0.06
PITCH_TOLERANCE = 100.0  # Hz; the colours' carriers are 350 apart
DERANGEMENTS = 20
RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95% bootstrap interval over clips; nan where nothing could be measured."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        if math.isnan(self.value):
            return "n/a"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True)
class Agreement:
    """How one sound fits one picture. `hits`: pairs within each of the tolerances; `errors`: seconds, of all pairs."""

    hits: tuple[int, ...]
    missed: tuple[int, ...]
    extra: tuple[int, ...]
    errors: tuple[float, ...]


def match(bounces: Sequence[float], clicks: Sequence[float], tolerance: float = math.inf) -> list[tuple[int, int]]:
    """One-to-one pairs (bounce index, click index): as many as lie within `tolerance` seconds, then the nearest."""
    if not len(bounces) or not len(clicks):
        return []
    distance = np.abs(np.subtract.outer(np.asarray(bounces), np.asarray(clicks)))
    within = distance <= tolerance
    # One pair too far apart costs more than all near ones together.
    rows, columns = linear_sum_assignment(np.where(within, distance, 1 + distance[within].sum()))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if within[i, j]]


def agree(seen: Events, heard: Events, tolerances_ms: Sequence[int] = TOLERANCES_MS) -> Agreement:
    """Compare the bounces of one clip with the clicks of a clip (its own, or another for chance).

    A picture without bounce under a sound without click is no agreement: every caption asks for a bounce, so it counts
    as one missed.
    """
    hits, missed, extra = [], [], []
    required = seen.last_frame - EDGE
    nothing = not seen.bounces and not heard.clicks
    for tolerance in tolerances_ms:
        pairs = match(seen.bounces, heard.clicks, tolerance / 1000)
        lonely_bounces = set(range(len(seen.bounces))) - {i for i, _ in pairs}
        lonely_clicks = set(range(len(heard.clicks))) - {j for _, j in pairs}
        hits.append(len(pairs))
        missed.append(nothing + sum(seen.bounces[i] < required for i in lonely_bounces))
        extra.append(sum(heard.clicks[j] < required for j in lonely_clicks))
    errors = tuple(abs(seen.bounces[i] - heard.clicks[j]) for i, j in match(seen.bounces, heard.clicks))
    return Agreement(tuple(hits), tuple(missed), tuple(extra), errors)


def score(clips: Sequence[Events], seed: int = 0, tolerances_ms: Sequence[int] = TOLERANCES_MS) -> dict[str, Any]:
    """The report on observed clips: a dict of counts and Figures (see the module's docstring and `format_report`).

    own_sound and shuffled_sound hold, for each tolerance, precision, recall and F1 over all events of all clips, and
    the median distance in ms of all pairs. shuffled_sound pools seeded derangements of the sounds; None for one clip.
    """
    if not clips:
        raise MovaError("no clips to measure")
    rng = np.random.default_rng(seed)
    count = len(clips)
    resamples = rng.integers(0, count, (RESAMPLES, count))
    own = [[agree(clip, clip, tolerances_ms)] for clip in clips]
    shuffled = [[] for _ in clips]
    for _ in range(DERANGEMENTS if count > 1 else 0):
        order = rng.permutation(count)  # each hears the next in a random ring: nobody its own
        for picture, sound in zip(order, np.roll(order, -1), strict=True):
            shuffled[picture].append(agree(clips[picture], clips[sound], tolerances_ms))
    named = [(clip, colour) for clip in clips if (colour := named_colour(clip.caption))]
    pitches = [[abs(pitch - COLOURS[colour][1]) <= PITCH_TOLERANCE for pitch in clip.pitches] for clip, colour in named]
    return {
        "clips": count,
        "bounces": sum(len(clip.bounces) for clip in clips),
        "clicks": sum(len(clip.clicks) for clip in clips),
        "silent_clips": sum(not clip.clicks for clip in clips),
        "still_clips": sum(not clip.bounces for clip in clips),
        "own_sound": _figures(own, resamples, tolerances_ms),
        "shuffled_sound": _figures(shuffled, resamples, tolerances_ms) if count > 1 else None,
        "pitch_matches_caption": share(pitches, rng),
        "colour_matches_caption": share([[clip.colour == colour] for clip, colour in named], rng),
    }


def measure(folder: str | Path, seed: int = 0) -> dict[str, Any]:
    """Observe every *.mp4 in `folder` and `score` them; `unreadable_clips` counts damaged ones, which warnings name.

    MovaError where there is none that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MovaError(f"{folder}: no such folder")
    paths = sorted(folder.glob("*.mp4"))
    if not paths:
        raise MovaError(f"no mp4 files in {folder}")
    listed = any((folder / name).is_file() for name in FILES)
    captions = {entry.path: entry.caption for entry in read_metadata(folder)} if listed else {}
    clips = []
    for path in paths:
        try:
            clips.append(observe(path, captions.get(path)))
        except MovaError as error:
            log.warning("not measured: %s", error)
            reason = error
    if not clips:
        raise MovaError(f"{folder}: none of {counted(len(paths), 'clip')} can be read: {reason}")
    return score(clips, seed) | {"unreadable_clips": len(paths) - len(clips)}


def named_colour(caption: str | None) -> str | None:
    """The one known colour that a caption names, None if none or several."""
    named = set(re.findall(r"\w+", (caption or "").lower())) & set(COLOURS)
    return named.pop() if len(named) == 1 else None


def _figures(trials: list[list[Agreement]], resamples: np.ndarray, tolerances_ms: Sequence[int]) -> dict:
    """Figures of `trials` (per clip, one agreement or more), bootstrapped over clips."""
    figures = {}
    for k, tolerance in enumerate(tolerances_ms):
        counts = [np.sum([(a.hits[k], a.missed[k], a.extra[k]) for a in clip], axis=0) for clip in trials]
        hits, missed, extra = np.array(counts).T
        figures[f"within_{tolerance}_ms"] = {
            "precision": _ratio(hits, hits + extra, resamples),
            "recall": _ratio(hits, hits + missed, resamples),
            "f1": _ratio(2 * hits, 2 * hits + missed + extra, resamples),
        }
    errors = [[1000 * error for agreement in clip for error in agreement.errors] for clip in trials]
    figures["median_error_ms"] = _median(errors, resamples)
    return figures


def share(answers: list[list[bool]], rng: np.random.Generator) -> Figure:
    """Share of true answers over the answers of all clips asked."""
    resamples = rng.integers(0, max(1, len(answers)), (RESAMPLES, len(answers)))
    return _ratio(np.array([sum(clip) for clip in answers]), np.array([len(clip) for clip in answers]), resamples)


def _ratio(part: np.ndarray, whole: np.ndarray, resamples: np.ndarray) -> Figure:
    """Sum of `part` over sum of `whole`, both [clips]."""
    wholes = whole[resamples].sum(axis=1)
    drawn = part[resamples].sum(axis=1)[wholes > 0] / wholes[wholes > 0]
    return _interval(part.sum() / whole.sum() if whole.sum() else math.nan, drawn)


def _median(values: list[list[float]], resamples: np.ndarray) -> Figure:
    """Median of all clips' values together."""
    pooled = [np.concatenate([values[clip] for clip in drawn]) for drawn in resamples]
    everything = np.concatenate(values)
    drawn = np.array([np.median(pool) for pool in pooled if len(pool)])
    return _interval(np.median(everything) if len(everything) else math.nan, drawn)


def _interval(value: float, drawn: np.ndarray) -> Figure:
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (math.nan, math.nan)
    return Figure(float(value), float(low), float(high))


def format_report(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    lines = [
        "{clips} clips: {bounces} bounces seen, {clicks} clicks heard; {silent_clips} clips silent, "
        "{still_clips} without a bounce; [..] = 95% bootstrap interval over clips".format_map(report)
    ]
    if report.get("unreadable_clips"):
        lines.append(f"{counted(report['unreadable_clips'], 'clip')} could not be read and were left out")
    row = "{:<15} {:<13}" + " {:<22}" * 3
    lines.append(row.format("", "", "precision", "recall", "F1").rstrip())
    for sound in ("own", "shuffled"):
        figures = report[f"{sound}_sound"]
        if figures is None:
            continue
        for tolerance in TOLERANCES_MS:
            cells = (figure.text() for figure in figures[f"within_{tolerance}_ms"].values())
            lines.append(row.format(f"{sound} sound", f"within {tolerance} ms", *cells).rstrip())
        lines.append(f"{sound} sound".ljust(16) + f"median error  {figures['median_error_ms'].text(1)} ms")
    lines.append(f"pitch matches the caption's colour: {report['pitch_matches_caption'].text()} of clicks")
    lines.append(f"ball matches the caption's colour:  {report['colour_matches_caption'].text()} of clips")
    return "\n".join(lines)


def plain(item: object) -> object:
    """The report in JSON's own types: a Figure becomes {value, low, high}, nan null."""
    if isinstance(item, Figure):
        return plain(asdict(item))
    if isinstance(item, dict):
        return {key: plain(value) for key, value in item.items()}
    return None if isinstance(item, float) and math.isnan(item) else item
