"""Do the notes of generated sounds have the number, pitch and times that their captions ask for?

Beside each clip's own caption stand the captions of other clips: chance.

    mova nano notes DIR [--json FILE]

DIR holds files of sound, or videos, and a metadata.jsonl or .json with their captions (see `synthetic.notes`).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.data.metadata import read_metadata
from mova_engine.data.synthetic.notes import PITCHES, Notes, read_caption
from mova_engine.errors import MovaError, counted
from mova_engine.scores.bounce_sync import DERANGEMENTS, Figure, match, share
from mova_engine.scores.note_events import NoteEvents, hear

log = logging.getLogger(__name__)

ONSET_MS = 40  # two latents
PITCH_CENTS = 50  # half a semitone


@dataclass(frozen=True)
class NoteAnswer:
    """How a sound answers a caption. pitches: of each note that is heard or asked for, whoever is more, whether it has
    the pitch asked for; onsets: likewise, whether it is one of both, at the same time. number: whether there are as
    many as asked for.
    """

    number: bool
    pitches: tuple[bool, ...]
    onsets: tuple[bool, ...]

    @property
    def right(self) -> bool:
        """Whether everything is."""
        return self.number and all(self.pitches) and all(self.onsets)


def answer(heard: NoteEvents, asked: Notes) -> NoteAnswer:
    """Compare what is heard with what a caption asks for. A note that is missing is wrong in pitch and time, and so is
    one too many.
    """
    most = max(len(heard.onsets), len(asked.onsets))
    pairs = match(asked.onsets, heard.onsets, ONSET_MS / 1000)
    wanted = PITCHES[asked.pitch]
    fits = [abs(1200 * math.log2(pitch / wanted)) <= PITCH_CENTS for pitch in heard.pitches if pitch > 0]
    right = min(sum(fits), len(asked.onsets))
    return NoteAnswer(
        len(heard.onsets) == len(asked.onsets),
        (True,) * right + (False,) * (most - right),
        (True,) * len(pairs) + (False,) * (most - len(pairs)),
    )


def score_notes(clips: Sequence[NoteEvents], seed: int = 0) -> dict[str, Any]:
    """The report on clips with captions of the known form: a dict of counts and Figures (see `format_notes`).

    own_caption and shuffled_captions hold the share of notes with the right pitch and the right onset, of clips with
    the right number of notes, and of clips in which all is right. shuffled_captions pools seeded derangements of the
    captions; None for one clip. Raises MovaError if no clip has such a caption.
    """
    asked = [(clip, notes) for clip in clips if (notes := read_caption(clip.caption or "")) is not None]
    if not asked:
        raise MovaError("no clip has a caption of the form 'three low beeps starting late at a quick pace'")
    rng = np.random.default_rng(seed)
    shuffled: list[list[NoteAnswer]] = [[] for _ in asked]
    for _ in range(DERANGEMENTS if len(asked) > 1 else 0):
        order = rng.permutation(len(asked))
        for sound, caption in zip(order, np.roll(order, -1), strict=True):
            shuffled[sound].append(answer(asked[sound][0], asked[caption][1]))
    own = [[answer(clip, notes)] for clip, notes in asked]
    errors = [
        1000 * (clip.onsets[j] - notes.onsets[i])
        for clip, notes in asked
        for i, j in match(notes.onsets, clip.onsets, ONSET_MS / 1000)
    ]
    return {
        "clips": len(asked),
        "without_known_caption": len(clips) - len(asked),
        "notes_asked": sum(len(notes.onsets) for _, notes in asked),
        "notes_heard": sum(len(clip.onsets) for clip, _ in asked),
        "silent_clips": sum(not clip.onsets for clip, _ in asked),
        "median_onset_error_ms": float(np.median(errors)) if errors else math.nan,
        "own_caption": _shares(own, rng),
        "shuffled_captions": _shares(shuffled, rng) if len(asked) > 1 else None,
    }


def measure_notes(folder: str | Path, seed: int = 0) -> dict[str, Any]:
    """Listen to the clips of a folder and `score_notes`; `unreadable_clips` counts damaged ones, which warnings name.

    MovaError where there is none that can be read.
    """
    entries, clips, reasons = read_metadata(folder), list[NoteEvents](), list[str]()
    for entry in entries:
        try:
            if not isinstance(entry.path, Path):
                raise MovaError(f"{entry.path}: lies in a shard; only files of their own are listened to")
            clips.append(hear(entry.path, entry.caption))
        except MovaError as error:
            reasons.append(str(error))
    if not clips:
        raise MovaError(f"{folder}: none of {counted(len(entries), 'clip')} can be read: {reasons[0]}")
    for reason in reasons:
        log.warning("not measured: %s", reason)
    return score_notes(clips, seed) | {"unreadable_clips": len(entries) - len(clips)}


def _shares(answers: list[list[NoteAnswer]], rng: np.random.Generator) -> dict[str, Figure]:
    """Shares over the answers of each clip, bootstrapped over clips."""

    def of(values: list[list[bool]]) -> Figure:
        return share(values, rng)

    return {
        "pitch": of([[fits for each in clip for fits in each.pitches] for clip in answers]),
        "onset": of([[fits for each in clip for fits in each.onsets] for clip in answers]),
        "number": of([[each.number for each in clip] for clip in answers]),
        "all": of([[each.right for each in clip] for clip in answers]),
    }


def format_notes(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    counts = (
        f"{counted(report['clips'], 'clip')}: {report['notes_asked']} notes asked for, {report['notes_heard']} heard"
    )
    counts += f", {counted(report['silent_clips'], 'silent clip')}"
    for key, words in (("without_known_caption", "without such a caption"), ("unreadable_clips", "unreadable")):
        counts += f", {report[key]} {words}" if report.get(key) else ""
    row = "{:<20}{:<23}{:<23}{:<23}{}"
    columns = (f"pitch +-{PITCH_CENTS} cents", f"onset +-{ONSET_MS} ms", "number", "all of a clip")
    lines = [counts, row.format("share that is right", *columns)]
    for name, words in (("own_caption", "own caption"), ("shuffled_captions", "other captions")):
        if report[name] is not None:
            lines.append(row.format(words, *(figure.text() for figure in report[name].values())).rstrip())
    lines.append(f"median of (heard - asked): {report['median_onset_error_ms']:+.1f} ms")
    return "\n".join(lines)
