"""Media files that recorded cases name."""

from pathlib import Path

from mova_engine.errors import MovaError
from mova_engine.parity.case import GoldenCase

# The copies that tests use, where the engine runs from its checkout.
_CHECKOUT = Path(__file__).resolve().parents[3] / "tests" / "data" / "media"


def media_file(case: GoldenCase, name: str) -> Path:
    """A file beside the case, in a folder `media` beside the case's folder, or in the checkout's tests/data/media."""
    places = (case.folder, case.folder / "media", case.folder.resolve().parent / "media", _CHECKOUT)
    for place in places:
        if (place / name).is_file():
            return place / name
    raise MovaError(f"{case.path}: {name} is in none of {', '.join(map(str, places))}")
