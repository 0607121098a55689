"""The score `bounce-sync`: whether the clicks of a clip meet its ball's bounces, and how far they are off."""

from collections.abc import Sequence

import numpy as np

from mova_engine.errors import MovaError
from mova_engine.scores.bounce_events import RATE, Events, events
from mova_engine.scores.bounce_sync import TOLERANCES_MS, agree, match
from mova_engine.scores.decoded_clip import SMALL_AREA, DecodedClip, Measured

# Seconds by which sound is tried early or late: half of the shortest tempo's period, beyond which another bounce is
# nearer.
MOST_OFFSET = 0.25
# Seconds that clicks may be away from their bounces once the sound is moved.
_TOGETHER = 0.03


def bounce_sync(clip: DecodedClip) -> Measured:
    """F1 of clicks and bounces within 84 ms, the sound's offset in seconds (positive where it is early), and F1 once
    the sound is moved by it. Raises MovaError for a clip that shows no bounce, or has no sound.
    """
    height, width = clip.size
    scale = min(1.0, (SMALL_AREA / (height * width)) ** 0.5)
    pictures = clip.pictures_in(max(1, round(height * scale)), max(1, round(width * scale)), "AREA")
    times = np.array(clip.times, np.float64)
    sound = np.asarray(clip.sound_with_pictures(RATE), np.float64)
    return bounce_numbers(events(clip.path.name, pictures, times, sound))


def bounce_numbers(found: Events) -> Measured:
    """The score of what was seen and heard. Raises MovaError where no bounce is seen."""
    if not found.bounces:
        raise MovaError("no bounce is seen")
    values = {"bounce_f1": _f1(found, found.clicks)}
    if not found.clicks:
        return Measured(values, None, "no click is heard")
    offset = sound_offset(found.bounces, found.clicks)
    if offset is None:
        return Measured(values, None, f"no click within {MOST_OFFSET:g} s of a bounce")
    moved = [click + offset for click in found.clicks]
    return Measured(values | {"bounce_offset": offset, "bounce_f1_moved": _f1(found, moved)}, None)


def sound_offset(bounces: Sequence[float], clicks: Sequence[float]) -> float | None:
    """By how many seconds clicks come before their bounces, MOST_OFFSET at most: the move that brings most of them
    together, of several the smallest; None where there is none.
    """
    moves = [bounce - click for bounce in bounces for click in clicks if abs(bounce - click) <= MOST_OFFSET]

    def fit(move: float) -> tuple[int, float]:
        return -len(match(bounces, [click + move for click in clicks], _TOGETHER)), abs(move)

    if not moves:
        return None
    best = min(moves, key=fit)
    pairs = match(bounces, [click + best for click in clicks], _TOGETHER)
    return float(sum(bounces[i] - clicks[j] for i, j in pairs) / len(pairs))


def _f1(seen: Events, clicks: Sequence[float]) -> float:
    heard = Events(seen.name, seen.last_frame, seen.bounces, tuple(clicks), (), None)
    agreement = agree(seen, heard, TOLERANCES_MS[:1])
    hits = agreement.hits[0]
    whole = 2 * hits + agreement.missed[0] + agreement.extra[0]
    return float(2 * hits / whole) if whole else 1.0
