"""Stand-in: one unit for each file."""

from mova_engine.curation.units import SourceFile, Unit
from mova_engine.files.digests import Digests


def units_of(file: SourceFile, digests: Digests, unit_seconds: float) -> list[Unit]:
    return [Unit(file, digests.of(file.path))]
