"""Cuts clips out of a unit: one pass over its pictures and its sound, and everything that is cheap to know of both."""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mova_engine.config.curate import MOVA_CLIP, CutSettings
from mova_engine.curation.black_bars import Box, as_crop, boxes_of_shots, shaped, union, upright_box
from mova_engine.curation.clip_signals import motion_signals, shot_signals, sound_signals, speech_signals
from mova_engine.curation.packing import Stretch, kind_of, packed
from mova_engine.curation.unit_pictures import SeenPictures, see_pictures, transition_times
from mova_engine.curation.unit_sound import HeardSound, hear_sound, speech_in
from mova_engine.curation.units import ClipWindow, Unit, UnitCut
from mova_engine.data.media.reader_process import in_reader_process
from mova_engine.errors import require_package
from mova_engine.scores.optional_opencv import opencv
from mova_engine.scores.shot_network import WEIGHTS, joined_transitions, transnet
from mova_engine.scores.shots import Transition, colours_of, shots_between
from mova_engine.scores.speech_activity import NETWORK

LANDSCAPE, PORTRAIT = 16 / 9, 9 / 16
# Processor time that a unit may take: ten minutes of 8K.
CPU_SECONDS = 3600
# Digits of seconds in what is noted of a clip: microseconds.
_DIGITS = 6


def cut_unit(unit: Unit, settings: CutSettings, frames: int = MOVA_CLIP.frames, fps: float = MOVA_CLIP.fps) -> UnitCut:
    """The clips of `frames` pictures at `fps` in a unit, and what is known of each, decoded in a process that no file
    can end; in one that is such a process already, there.

    Raises MovaError where no clip can be read of the file, and where a package is missing (`check_cut`).
    """
    return _cut(unit.file.path, unit, settings, frames, fps)


def check_cut(settings: CutSettings) -> None:
    """MovaError, with the command that installs it, where a package or a network that cutting needs is missing."""
    opencv("Cutting films")
    require_package("onnxruntime", NETWORK.what)
    NETWORK.path()
    if settings.shots == "transitions":
        WEIGHTS.path()


@partial(in_reader_process, cpu_seconds=CPU_SECONDS)
def _cut(path: str | Path, unit: Unit, settings: CutSettings, frames: int, fps: float) -> UnitCut:
    # One core for a unit: others work on other units.
    opencv("Cutting films").setNumThreads(1)
    torch.set_num_threads(1)
    start = Fraction(unit.start).limit_denominator(1_000_000)
    length = None if unit.end is None else Fraction(unit.end).limit_denominator(1_000_000) - start
    seen = see_pictures(path, start, length, small=settings.shots == "transitions")
    if not seen.times:
        return UnitCut(_facts(seen, None, (), ()), (), ())
    end = seen.end if length is None else min(float(length), seen.end)
    sound = hear_sound(path, seen.origin, start, end)
    speech = speech_in(sound) if sound else []
    transitions = _transitions(seen, settings)
    stretch = _stretch(seen, sound, transitions, speech, end, 1 / (2 * fps))
    boxes = _boxes(seen, transitions, settings)
    seconds = frames / fps
    starts = packed(stretch, seconds, settings.kinds)
    shots = [first for first, _ in shots_between(transitions, len(seen.times))]
    clips, signals = [], []
    for i in starts:
        begin = float(stretch.times[i])
        last = int(np.searchsorted(stretch.times, begin + seconds - stretch.reach, "left"))
        box = union(boxes[_shot(shots, i) : _shot(shots, last - 1) + 1])
        clip = _clip(stretch, start + seen.times[i], begin, box, seen.size, settings, frames, fps)
        clips.append(clip)
        signals.append(_signals(clip, seen, sound, begin, box, shots))
    return UnitCut(_facts(seen, sound, stretch.transitions, speech), tuple(clips), tuple(signals))


def _transitions(seen: SeenPictures, settings: CutSettings) -> list[Transition]:
    hard, gaps = seen.finder.hard_cuts(), seen.finder.black_gaps()
    if settings.shots == "content":
        return sorted([*hard, *gaps])
    small = np.stack(seen.small)
    return joined_transitions(transnet(), small, hard, gaps, colours_of(small), seen.fps)


def _stretch(
    seen: SeenPictures,
    sound: HeardSound | None,
    transitions: Sequence[Transition],
    speech: Sequence[tuple[float, float]],
    end: float,
    reach: float,
) -> Stretch:
    times = np.array([float(time) for time in seen.times])
    # Where the sound is damaged nothing more can be read, whatever the pictures are.
    end = sound.covered[1] if sound and sound.fault else end
    pieces = [
        (first, last, min(end, seen.end if last == len(times) else times[last - 1] + seen.usual))
        for first, last in seen.pieces()
    ]
    return Stretch(times, pieces, transition_times(seen, list(transitions)), speech, reach)


def _boxes(seen: SeenPictures, transitions: Sequence[Transition], settings: CutSettings) -> list[Box]:
    """What is kept of each shot's pictures, as it lies in upright ones."""
    shots = shots_between(transitions, len(seen.times))
    whole = (0, 0, seen.stored[1], seen.stored[0])
    found: Sequence[Box | None] = [whole] * len(shots)
    if settings.bars == "crop":
        numbers = [number for number, _ in seen.bars]
        looked = [
            [lines for _, lines in seen.bars[bisect_right(numbers, first - 1) : bisect_right(numbers, end - 1)]]
            for first, end in shots
        ]
        times = [*map(float, seen.times), seen.end]
        found = boxes_of_shots(looked, [times[end] - times[first] for first, end in shots])
    return [upright_box(box or whole, seen.stored, seen.orientation, seen.pixel_aspect) for box in found]


def _shot(firsts: Sequence[int], picture: int) -> int:
    """The number of a picture's shot, of the first pictures of all."""
    return bisect_right(firsts, picture) - 1


def _clip(
    stretch: Stretch,
    start: Fraction,
    begin: float,
    box: Box,
    size: tuple[int, int],
    settings: CutSettings,
    frames: int,
    fps: float,
) -> ClipWindow:
    """The clip at `begin` in the unit, `start` in the film, whose shots keep `box` of pictures of this size."""
    seconds = frames / fps
    at = np.array([begin])
    cuts = _cuts(stretch, begin, seconds)
    speech = [
        (round(max(first - begin, 0.0), _DIGITS), round(min(last - begin, seconds), _DIGITS))
        for first, last in stretch.speech
        if last > begin and first < begin + seconds
    ]
    aspect = LANDSCAPE if box[2] - box[0] >= box[3] - box[1] else PORTRAIT
    cut = box if settings.aspect == "keep" else shaped(box, aspect)
    pad = None
    if settings.aspect == "pad" and cut != box:
        width, height = box[2] - box[0], box[3] - box[1]
        pad = (max(width, 2 * round(height * aspect / 2)), max(height, 2 * round(width / aspect / 2)))
        cut = box
    return ClipWindow(
        start=Fraction(round(start * 1_000_000), 1_000_000),
        frames=frames,
        fps=fps,
        kind=kind_of(float(stretch.speech_within(at, seconds)[0]), len(cuts)),
        crop=as_crop(cut, size),
        shots=len(cuts) + 1,
        cuts=cuts,
        speech=tuple(speech),
        pad=pad,
    )


def _cuts(stretch: Stretch, begin: float, seconds: float) -> tuple[float, ...]:
    """The cuts that a clip shows, in seconds from its start; of a dissolve its middle, or where it is seen last."""
    shown = [each for each in stretch.transitions if stretch.shows(each, begin, seconds)]
    return tuple(round(min(max((first + end) / 2 - begin, 0.0), seconds), _DIGITS) for first, end in shown)


def _signals(
    clip: ClipWindow, seen: SeenPictures, sound: HeardSound | None, begin: float, box: Box, shots: Sequence[int]
) -> dict[str, float]:
    found = shot_signals(clip) | motion_signals(seen, begin, clip.seconds, box, lambda picture: _shot(shots, picture))
    if sound is not None:
        found |= speech_signals(clip) | sound_signals(sound, begin, clip.seconds)
    return found


def _facts(
    seen: SeenPictures,
    sound: HeardSound | None,
    transitions: Sequence[tuple[float, float]],
    speech: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """What is known of the unit, as JSON has it. Times are seconds from its start on."""
    height, width = seen.size
    return {
        "width": width,
        "height": height,
        "fps": seen.fps,
        "codec": seen.codec,
        "pictures": len(seen.times),
        "seconds": round(seen.end, _DIGITS) if seen.times else 0.0,
        "shots": len(transitions) + 1 if seen.times else 0,
        "transitions": [[round(side, _DIGITS) for side in each] for each in transitions],
        "sound": sound is not None,
        "sample_rate": sound.rate if sound else 0,
        "channels": sound.samples.shape[1] if sound else 0,
        "speech_seconds": round(sum(end - start for start, end in speech), _DIGITS),
        "fault": "; ".join(each for each in (seen.fault, sound.fault if sound else "") if each),
    }
