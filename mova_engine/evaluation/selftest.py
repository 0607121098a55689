"""`mova eval selftest`: published examples and closed forms of scores, computed on this machine.

The examples are data, selftest_examples.yaml; how one is computed is in selftest_checks.py.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mova_engine.errors import MovaError
from mova_engine.evaluation.selftest_checks import CHECKS, SelftestInputs
from mova_engine.scores.weights_folder import WeightsFolder
from mova_engine.scores.weights_manifest import WEIGHTS

EXAMPLES = Path(__file__).with_name("selftest_examples.yaml")


@dataclass(frozen=True)
class ExampleNeeds:
    """packages: names to import. weights: names in the manifest. media: {file: where it comes from}."""

    packages: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    media: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class SelftestExample:
    """check: of CHECKS, with its input `given`. expected: numbers, each within `bound` of what is got, absolute."""

    name: str
    check: str
    given: Mapping[str, Any]
    expected: Mapping[str, float]
    bound: float
    source: str
    needs: ExampleNeeds = ExampleNeeds()


@dataclass(frozen=True)
class ExampleVerdict:
    """state: whether every number is within its bound; "absent" where the example could not be tried. got: the numbers
    of `expected`, none where it could not be computed. reason: why there are none.
    """

    example: SelftestExample
    state: Literal["held", "missed", "absent"]
    got: Mapping[str, float] = field(default_factory=dict[str, float])
    reason: str = ""


def read_examples(path: Path = EXAMPLES) -> list[SelftestExample]:
    """The table of examples."""
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [SelftestExample(**{**row, "needs": ExampleNeeds(**row.get("needs", {}))}) for row in rows]


def run_examples(
    examples: Iterable[SelftestExample], weights: WeightsFolder | None = None, media: Path | None = None
) -> Iterator[ExampleVerdict]:
    """Each example's verdict, in order. media: a folder searched, with those in it, for recordings.

    An example whose files or packages are not there has no numbers and says where they come from.
    """
    weights = weights or WeightsFolder(None)
    for example in examples:
        files, lacking = _found(example.needs, weights, media)
        if lacking:
            yield ExampleVerdict(example, "absent", reason=f"needs {'; '.join(lacking)}")
        else:
            yield _try(example, SelftestInputs(files, weights))


def _try(example: SelftestExample, inputs: SelftestInputs) -> ExampleVerdict:
    try:
        found = CHECKS[example.check](example.given, inputs)
    except MovaError as error:
        return ExampleVerdict(example, "missed", reason=str(error))
    got = {name: float(found[name]) for name in example.expected}
    held = all(abs(got[name] - expected) <= example.bound for name, expected in example.expected.items())
    return ExampleVerdict(example, "held" if held else "missed", got)


def _found(needs: ExampleNeeds, weights: WeightsFolder, media: Path | None) -> tuple[dict[str, Path], list[str]]:
    files: dict[str, Path] = {}
    lacking = [f"the package {name}" for name in needs.packages if importlib.util.find_spec(name) is None]
    for name in needs.weights:
        if reason := weights.lacking([name]):
            lacking.append(f"{reason} ({WEIGHTS[name].source})")
    for name, origin in needs.media.items():
        place = None if media is None else next(iter(sorted(media.rglob(name))), None)
        if place is None:
            lacking.append(f"{name} ({origin})")
        else:
            files[name] = place
    return files, lacking
