"""How a user names folders of clips that are mixed by weight: `FOLDER`, `FOLDER:3`, `FOLDER:0.5`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mova_engine.config.limits import check

# Weights beyond these would not be told from 0 or from infinity in shares.
LEAST, MOST = 1e-100, 1e100


class WeightedFolder(NamedTuple):
    """Where clips come from. weight: of each so many clips of the mix one is from here. name: the last parts of the
    path by which it differs from the others, in metrics and checkpoints.
    """

    path: Path
    weight: float
    name: str = ""


def parse_mix(words: Sequence[str]) -> tuple[WeightedFolder, ...]:
    """The folders of a mix as typed; a number after the last colon is the weight, 1 where there is none. The weights
    need not add up to anything. MovaError for a weight that is no positive number, and for a folder named twice.
    """
    found = [_parse(text) for text in words]
    for place, each in enumerate(found):
        same = [other.path for other in found[:place] if other.path.resolve() == each.path.resolve()]
        also = f", also as {same[0]}" if same and same[0] != each.path else ""
        check(not same, f"mix names {each.path} twice{also}: give it one weight")
    return tuple(each._replace(name=_name(each.path, [other.path for other in found])) for each in found)


def _parse(text: str) -> WeightedFolder:
    path, colon, last = text.rpartition(":")
    try:
        weight = float(last) if colon else 1.0
    except ValueError:
        path, weight = text, 1.0
    path = path if colon and path else text
    check(bool(path.strip()), f"mix: '{text}' names no folder: FOLDER or FOLDER:WEIGHT are wanted")
    usable = LEAST <= weight <= MOST
    check(usable, f"mix: the weight of {path} must be a positive number, got {weight:g}; leave out what is not wanted")
    return WeightedFolder(Path(path), weight)


def _name(path: Path, every: Sequence[Path]) -> str:
    """The fewest last parts of `path` that no other path ends in."""
    for length in range(1, len(path.parts) + 1):
        name = path.parts[-length:]
        if sum(other.parts[-length:] == name for other in every) == 1:
            return "/".join(name)
    return str(path)
