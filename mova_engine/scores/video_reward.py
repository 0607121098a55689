"""What surrounds the VideoReward model: which frames it sees, at which size, and how its scores are normalised.

The model itself is a vision-language model in a folder of its own (KlingTeam/VideoReward, arXiv 2501.13918); frames and
sizes follow Qwen2-VL's rules.
"""

import math
from collections.abc import Mapping, Sequence

from mova_engine.errors import MovaError

AXES = ("VQ", "MQ", "TA")  # visual quality, motion quality, text alignment
OVERALL = "Overall"
# Qwen2-VL: frames come in pairs, sides are multiples of 28 pixels.
FRAME_FACTOR = 2
LEAST_FRAMES = 4
MOST_FRAMES = 768
SIDE_FACTOR = 28
LEAST_PIXELS = 128 * SIDE_FACTOR**2
MOST_ASPECT = 200


def normalise(raw: Mapping[str, float], constants: Mapping[str, float] | None) -> dict[str, float]:
    """(score - mean) / std of each axis, and their sum as "Overall".

    constants: "VQ_mean", "VQ_std" and so on, of the checkpoint's configuration; None leaves the raw scores, of which
    there is no sum.
    """
    if constants is None:
        return {axis: raw[axis] for axis in AXES}
    scores = {axis: (raw[axis] - constants[f"{axis}_mean"]) / constants[f"{axis}_std"] for axis in AXES}
    return scores | {OVERALL: sum(scores.values())}


def set_means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over clips of each axis and of the sum."""
    return {axis: sum(score[axis] for score in scores) / len(scores) for axis in (*AXES, OVERALL)}


def frame_indices(frames: int, fps: float, wanted_fps: float) -> list[int]:
    """Which of a clip's frames are shown: about wanted_fps a second, an even number, spread over the whole clip.

    Raises MovaError for a clip of fewer than two frames.
    """
    most = min(MOST_FRAMES, frames) // FRAME_FACTOR * FRAME_FACTOR
    wanted = min(max(frames / fps * wanted_fps, LEAST_FRAMES), most)
    count = min(round(wanted / FRAME_FACTOR) * FRAME_FACTOR, frames)
    if count < FRAME_FACTOR:
        raise MovaError(f"VideoReward sees at least {FRAME_FACTOR} frames, the clip has {frames}")
    # linspace in float32, as the reference computes it: an index halfway between two frames rounds with it.
    import torch

    return torch.linspace(0, frames - 1, count).round().long().tolist()


def picture_size(height: int, width: int, most_pixels: int, least_pixels: int = LEAST_PIXELS) -> tuple[int, int]:
    """The height and width at which frames are shown: multiples of 28 within the pixels, the aspect nearly kept."""
    if max(height, width) / min(height, width) > MOST_ASPECT:
        raise MovaError(f"pictures of {height}x{width} are more than {MOST_ASPECT} times as long as wide")
    sides = [max(SIDE_FACTOR, round(side / SIDE_FACTOR) * SIDE_FACTOR) for side in (height, width)]
    pixels = sides[0] * sides[1]
    if pixels > most_pixels:
        shrink = math.sqrt(height * width / most_pixels)
        sides = [max(SIDE_FACTOR, math.floor(side / shrink / SIDE_FACTOR) * SIDE_FACTOR) for side in (height, width)]
    elif pixels < least_pixels:
        grow = math.sqrt(least_pixels / (height * width))
        sides = [math.ceil(side * grow / SIDE_FACTOR) * SIDE_FACTOR for side in (height, width)]
    return sides[0], sides[1]
