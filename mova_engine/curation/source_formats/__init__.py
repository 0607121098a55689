"""How published lists of clips are written: each format is a module that recognises it and reads its rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

# The modules of formats, in the order in which a list is tried.
MODULES = ("vggsound", "acav100m", "openvid", "chronomagic", "autorecap", "openhumanvid", "speakervid", "own_list")


@dataclass(frozen=True)
class ListedClip:
    """What a row says. names: how the file of this clip alone may be called, the likeliest first, with suffix or
    without. film: how the whole film may be called, of which `span` is the clip (seconds); "": there is none.
    """

    names: tuple[str, ...]
    caption: str = ""
    film: str = ""
    span: tuple[float, float] | None = None
    facts: Mapping[str, str | float | int | bool] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class SourceFormat:
    """A format. name: as reports call it. looks: what its rows look like, for people. recognises: (path, first row as
    `list_rows` gives it, its cells) -> whether a list is of this format. clips: the clips of a row; raises BadRowError.
    head: whether the first line of a CSV file names the columns.
    """

    name: str
    looks: str
    recognises: Callable[[Path, Any, list[str]], bool]
    clips: Callable[[Any], list[ListedClip]]
    head: bool = True


def source_formats() -> list[SourceFormat]:
    """All formats, in the order in which a list is tried."""
    return [import_module(f"{__name__}.{name}").FORMAT for name in MODULES]


def plain_facts(row: Mapping[str, Any], *left_out: str) -> dict[str, str | float | int | bool]:
    """What else a row says: its plain values, without the columns that are read otherwise."""
    kept = {key: value for key, value in row.items() if key not in left_out}
    return {key: value for key, value in kept.items() if isinstance(value, str | float | int | bool)}
