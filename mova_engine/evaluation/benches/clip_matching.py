"""Which file is which clip of a bench: by the id that its name begins with, as a whole word, the longest that fits.

MOVA's evaluation takes the first id that a name begins with: of ids 1 to 132, 123 files then get another clip's prompt.
Here "12_a cat.mp4" is clip 12 and never clip 1. An id of digits also fits a name that begins with the same number
written with other zeros ("001_a.mp4" is clip 1), where no id fits as it is.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.data.text import shown
from mova_engine.errors import MovaError
from mova_engine.evaluation.benches.bench_items import BenchItem

_DIGITS = re.compile(r"[0-9]+(?![^\W_])")


@dataclass(frozen=True)
class ItemFiles:
    """files[i]: those of items[i]: several where its prompt was sampled several times, none where it is missing.
    extra: files that are no clip of the bench.
    """

    items: tuple[BenchItem, ...]
    files: tuple[tuple[Path, ...], ...]
    extra: tuple[Path, ...]

    @property
    def missing(self) -> list[BenchItem]:
        """Clips without a file."""
        return [item for item, found in zip(self.items, self.files, strict=True) if not found]

    @property
    def item_of(self) -> dict[Path, BenchItem]:
        """The clip of each file that is one."""
        return {file: item for item, found in zip(self.items, self.files, strict=True) for file in found}


def match_files(files: Iterable[Path], items: Sequence[BenchItem]) -> ItemFiles:
    """Sort files, named relative to their folder, by clip.

    A file in a folder of a category's name is sought among that category's clips alone, so categories may share ids.
    Raises MovaError for a file that fits several clips.
    """
    found: list[list[Path]] = [[] for _ in items]
    extra = []
    known = {item.category for item in items}
    for file in files:
        within = next((part for part in reversed(file.parts[:-1]) if part in known), None)
        fitting = _fitting(file.stem, [(i, x.id) for i, x in enumerate(items) if within in (None, x.category)])
        if len(fitting) > 1:
            places = ", ".join(f"{items[i].id} of {items[i].category}" for i in fitting)
            raise MovaError(
                f"{shown(file.as_posix())}: fits several clips of the bench ({places}): put it into a folder of its "
                "category's name, or give it the whole id"
            )
        if fitting:
            found[fitting[0]].append(file)
        else:
            extra.append(file)
    return ItemFiles(tuple(items), tuple(map(tuple, found)), tuple(extra))


def _fitting(stem: str, ids: list[tuple[int, str]]) -> list[int]:
    """Places of the longest id that a name begins with; several only where they share it."""
    whole = [(i, name) for i, name in ids if stem.startswith(name) and not stem[len(name) :][:1].isalnum()]
    if whole:
        longest = max(len(name) for _, name in whole)
        return [i for i, name in whole if len(name) == longest]
    number = _DIGITS.match(stem)
    return [] if number is None else [i for i, name in ids if _is_number(name) and int(name) == int(number[0])]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()
