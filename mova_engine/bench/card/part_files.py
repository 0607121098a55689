"""Result files of a card: one for each part, written whole after each unit, by which a later slice knows what is done.

A file says for every unit its rows, or why there are none: "failed" with the reason, or "left_out".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.bench.card.card_suites import PART_NAMES, CardUnit
from mova_engine.errors import MovaError
from mova_engine.files.results import check_result, read_result, write_result

_KIND = "card"
# What must be the same in all files of a folder.
_IDENTITY = ("suite", "mark")


@dataclass(frozen=True)
class PartFiles:
    """The files of a folder. suite: the suite's name. mark: how rows were made that are no measurements, else None."""

    folder: Path
    suite: str
    mark: str | None

    def path(self, part: str) -> Path:
        return self.folder / f"{part}.json"

    def read(self, part: str) -> dict[str, Any] | None:
        """The file of a part; None where there is none. Raises MovaError for one of another suite or kind, and for one
        that is damaged or was changed.
        """
        path = self.path(part)
        if not path.exists():
            return None
        check_result(path, "--out")
        content = read_result(path)
        if content["kind"] != f"{_KIND} {part}":
            raise MovaError(f"{path} is no result of this command: give another --out")
        for name in _IDENTITY:
            if content.get(name) != getattr(self, name):
                raise MovaError(
                    f"{path} is of {_said(content)}, this run is of {_said(vars(self))}: give another --out"
                )
        return content

    def units(self, part: str) -> dict[str, dict[str, Any]]:
        """What is recorded of a part's units."""
        content = self.read(part)
        return {} if content is None else content["units"]

    def missing(self, units: list[CardUnit], retry: bool) -> list[CardUnit]:
        """Those units of which nothing is recorded; retry: those too that failed."""
        done = {part: self.units(part) for part in {unit.part for unit in units}}

        def is_done(unit: CardUnit) -> bool:
            entry = done[unit.part].get(unit.name)
            return entry is not None and not (retry and "failed" in entry)

        return [unit for unit in units if not is_done(unit)]

    def add(self, unit: CardUnit, entry: Mapping[str, Any], circumstances: Mapping[str, Any]) -> None:
        """Record a unit: its part's file is written anew, whole."""
        units = {**self.units(unit.part), unit.name: dict(entry)}
        path = self.path(unit.part)
        identity = {name: getattr(self, name) for name in _IDENTITY}
        write_result(path, f"{_KIND} {unit.part}", circumstances, option="--out", **identity, units=units)

    def check_device(self, circumstances: Mapping[str, Any]) -> None:
        """MovaError where files are of another device or another torch than these circumstances tell of."""
        for part in PART_NAMES:
            if (content := self.read(part)) is None:
                continue
            for name in ("device_name", "torch"):
                found, here = content["circumstances"].get(name), circumstances[name]
                if found != here:
                    raise MovaError(f"{self.path(part)} was measured on {found}, here is {here}: give another --out")


def _said(content: Mapping[str, Any]) -> str:
    mark = content.get("mark")
    return f"suite {content.get('suite')}" + (f", {mark}" if mark else "")
