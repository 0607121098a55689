"""Counts what the detectors of shots find of drawn films, eight of each kind: `python -m scores.shot_study`, in tests/.

A cut counts as found at its picture, a fade or a dissolve within 4 pictures of its ends; anything else that a detector
gives is false.
"""

import sys

import cv2
import numpy as np
from scores.drawn_films import dissolved, faded, flashed, joined, scene

from mova_engine.scores.shot_network import network_transitions, transnet
from mova_engine.scores.shots import shots

FPS, FILMS, NEAR = 24.0, 8, 4
Interval = tuple[int, int]


def films(kind: str, i: int) -> tuple[np.ndarray, list[Interval]]:
    """Film i of a kind, and its transitions as [first picture, one after the last]."""
    seed = 100 * i
    if kind == "hard cuts":
        film, cuts = joined(*(scene(seed + n, 0.6 + 0.3 * n) for n in range(4)))
    elif kind == "cuts between fast pans":
        film, cuts = joined(*(scene(seed + n, 1.5, speed=1 + i / 4) for n in range(2)))
    elif kind == "fast pans":
        film, cuts = scene(seed, 2, speed=1 + i / 2), []
    elif kind == "flashes and black gaps":
        film, cuts = flashed(scene(seed, 2, speed=i / 4), 20, 1 + i % 5, 255 * (i % 2)), []
    elif kind == "fades over black":
        film, truth = faded(scene(seed), scene(seed + 1), 6 + 2 * i)
        return film, [truth]
    else:
        film, truth = dissolved(scene(seed), scene(seed + 1), 8 + 3 * i)
        return film, [truth]
    return film, [(cut, cut) for cut in cuts]


def by_pictures(film: np.ndarray) -> list[Interval]:
    """Where shots begin, as transitions without a length."""
    return [(first, first) for first, _ in shots(film, FPS)[1:]]


def by_network(film: np.ndarray) -> list[Interval]:
    """TransNet's transitions and those that pictures alone show."""
    small = np.stack([cv2.resize(picture, (48, 27), interpolation=cv2.INTER_AREA) for picture in film])
    return network_transitions(transnet(), small, film, FPS)


def matches(found: Interval, true: Interval) -> bool:
    """Whether a transition is the true one: a cut at its picture, a long one from and to about its ends or within."""
    if true[0] == true[1]:
        return found == true
    return true[0] - NEAR <= found[0] and found[1] <= true[1] + NEAR


def main() -> None:
    """Print the table."""
    for kind in (
        "hard cuts",
        "cuts between fast pans",
        "fast pans",
        "flashes and black gaps",
        "fades over black",
        "dissolves",
    ):
        told = []
        for name, detector in (("shots", by_pictures), ("transitions", by_network)):
            hits = false = asked = 0
            for i in range(FILMS):
                film, truth = films(kind, i)
                found = detector(film)
                asked += len(truth)
                hits += sum(any(matches(each, true) for each in found) for true in truth)
                false += sum(not any(matches(each, true) for true in truth) for each in found)
            told.append(f"{name} {hits} of {asked}, {false} false")
        sys.stdout.write(f"{kind}: {'; '.join(told)}\n")


if __name__ == "__main__":
    main()
