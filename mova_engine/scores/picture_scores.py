"""The functions of the scores of pictures alone: from a decoded clip to {column: number}."""

from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mova_engine.errors import MovaError, require_package
from mova_engine.scores import motion as moving
from mova_engine.scores.decoded_clip import DecodedClip, Measured
from mova_engine.scores.optional_opencv import opencv
from mova_engine.scores.shots import Shot, shots_between
from mova_engine.scores.shots import shots as shots_of

if TYPE_CHECKING:
    from mova_engine.scores.text_reader import TextReader

Pixels = NDArray[np.uint8]
# Samples a second in which text is sought.
TEXT_RATE = 1.0


def shots(clip: DecodedClip) -> Measured:
    """How many shots a clip has, and the shortest. Evidence: [first, end) of each, in pictures."""
    found = shots_of(clip.small_pictures, clip.fps)
    return Measured(
        {"shots": len(found), "shot_seconds_shortest": _shortest(clip, found)}, [list(shot) for shot in found]
    )


def transitions(clip: DecodedClip) -> Measured:
    """Shots with dissolves and fades. Evidence: the pictures [first, end) of each transition."""
    from mova_engine.scores.networks.transnet import HEIGHT, WIDTH
    from mova_engine.scores.shot_network import network_transitions, transnet

    found = network_transitions(transnet(), clip.pictures_in(HEIGHT, WIDTH), clip.small_pictures, clip.fps)
    shots = shots_between(found, len(clip.times))
    values = {
        "shots_with_dissolves": len(shots),
        "dissolves": sum(end > first for first, end in found),
        "shot_seconds_shortest_with_dissolves": _shortest(clip, shots),
    }
    return Measured(values, [list(each) for each in found])


def motion(clip: DecodedClip) -> dict[str, float]:
    """Mean speed within the shots, and the share of time in which nothing moves."""
    rate = min(moving.RATE, clip.fps)
    chosen = clip.shown_at(rate)
    starts = [first for first, _ in shots_of(clip.small_pictures, clip.fps)]
    shot = np.searchsorted(starts, chosen, side="right").tolist()
    found = moving.motion_and_stillness(clip.small_pictures[chosen], rate, shot)
    if found is None:
        raise MovaError("motion needs two pictures of a shot")
    return {"motion": found[0], "still_share": found[1]}


def overlays(clip: DecodedClip) -> Measured:
    """What is laid over a film and stays where it is. Evidence: [left, top, right, bottom] of each, in shares."""
    from mova_engine.scores.static_overlays import PICTURES, ROWS, static_overlays

    height, width = clip.size
    scale = min(1.0, ROWS / min(height, width))
    sides = round(height * scale), round(width * scale)
    chosen = np.unique(np.linspace(0, len(clip.times) - 1, PICTURES).astype(int)).tolist()
    found = static_overlays(np.stack([_made_smaller(picture, *sides) for picture in clip.pictures_of(chosen)]))
    return Measured({"overlay_area": found.area}, [list(box) for box in found.boxes])


def text(clip: DecodedClip) -> Measured:
    """What text does to a clip, looked at once a second. Evidence: each sample's lines, with what they say."""
    from mova_engine.scores.text_places import text_numbers

    chosen = clip.shown_at(TEXT_RATE)
    boxes = [_text_reader().boxes(picture) for picture in clip.pictures_of(chosen.tolist())]
    found = text_numbers(boxes, clip.small_pictures[chosen])
    values = {
        "text_area": found.area,
        "text_share": found.share,
        "text_persistence": found.persistence,
        "text_overlay": found.overlay,
    }
    return Measured(values, [[asdict(box) for box in lines] for lines in boxes])


def check_opencv() -> None:
    """MovaError without OpenCV."""
    opencv("Measuring pictures")


def check_transitions() -> None:
    """MovaError without OpenCV, and without TransNet's weights."""
    from mova_engine.scores.shot_network import WEIGHTS

    check_opencv()
    WEIGHTS.path()


def check_text() -> None:
    """MovaError without OpenCV and onnxruntime, and without the networks that read text."""
    from mova_engine.scores.text_reader import DETECTOR, RECOGNISER

    check_opencv()
    require_package("onnxruntime", DETECTOR.what)
    DETECTOR.path()
    RECOGNISER.path()


@lru_cache(1)
def _text_reader() -> "TextReader":
    from mova_engine.scores.text_reader import TextReader

    return TextReader()


def _made_smaller(picture: Pixels, height: int, width: int) -> Pixels:
    """A picture in a size, each pixel the mean of those that it takes the place of."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def _shortest(clip: DecodedClip, shots: list[Shot]) -> float:
    """Seconds of the shortest shot."""
    times = [*map(float, clip.times), float(clip.times[-1]) + 1 / clip.fps]
    return min(times[end] - times[first] for first, end in shots)
