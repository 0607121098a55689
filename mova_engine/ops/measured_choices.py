"""Which implementation of each operator was the fastest on this device: what `mova bench operators --choose` writes.

The file lies in the folder of `mova_kernels.measured_tables`, one for each device, and holds for the device and the
versions of packages with which it was measured; for others it is passed over, with the reason. A named implementation
(`--ops.attention sdpa`) wins over it, and one that cannot serve is passed over as always.
"""

import functools
import importlib.metadata
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mova_engine import __version__
from mova_engine.backend import Backend
from mova_engine.errors import MovaError
from mova_engine.files.results import read_result
from mova_kernels.measured_tables import tables_folder

log = logging.getLogger(__name__)
KIND = "operator choices"
COMMAND = "mova bench operators --choose"
# Distributions whose version decides what an implementation is and how fast.
_DISTRIBUTIONS = (
    *("torch", "torch_npu", "triton", "triton-ascend"),
    *("flash-attn", "flash-attn-3", "flash-attn-4", "apex", "mindiesd"),
)
# dtype -> training or sampling -> operator -> {"implementation": name, "seconds": {name: seconds}}.
Entries = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]


@dataclass(frozen=True)
class MeasuredChoices:
    """What was measured on a device. about: a line that says where it is from, or why it is passed over; "" where there
    is nothing.
    """

    about: str = ""
    entries: Entries = field(default_factory=dict)

    def timed(self, operator: str, training: bool, dtypes: Iterable[str]) -> tuple[str, ...]:
        """The implementations of an operator that were timed, the one to take first; () where nothing was measured in
        one of `dtypes`, or not the same.
        """
        purpose, found = purpose_of(training), set[tuple[str, ...]]()
        for dtype in dtypes:
            entry = self.entries.get(dtype, {}).get(purpose, {}).get(operator)
            if entry is None:
                return ()
            chosen = entry["implementation"]
            found.add((chosen, *sorted(name for name in entry["seconds"] if name != chosen)))
        return found.pop() if len(found) == 1 else ()


def purpose_of(training: bool) -> str:
    """The name under which choices for models with gradients, or without, are kept."""
    return "training" if training else "sampling"


def versions(backend: Backend) -> dict[str, str]:
    """Of the engine, of the packages that serve operators, and of the device's own libraries."""
    found = {"mova_engine": __version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | backend.versions()


def choices_file(backend: Backend) -> Path:
    """Where the choices for a device lie. MovaError where MOVA_TILES names no folder."""
    try:
        folder = tables_folder()
    except ValueError as error:
        raise MovaError(str(error)) from None
    return folder / f"operators-{re.sub(r'[^a-z0-9]+', '-', backend.describe().lower()).strip('-')}.json"


def read_choices(backend: Backend) -> MeasuredChoices:
    """The choices for a device that is here. MovaError for a file that is damaged. That choices are passed over is told
    as a warning too, once.
    """
    path = choices_file(backend)
    if not path.exists():
        others = [other.stem.removeprefix("operators-") for other in sorted(path.parent.glob("operators-*.json"))]
        about = f"choices in {path.parent} are not used: measured on {', '.join(others)}, not on this device: {COMMAND}"
        return MeasuredChoices(about if others else "")
    content = read_file(path)
    reason = mismatch(content, backend)
    if reason is None:
        date = content["circumstances"].get("date", "an unknown day")
        return MeasuredChoices(f"choices measured on {date}: {path}", content["choices"])
    about = f"choices in {path} are not used: {reason}; measure anew: {COMMAND}"
    _warn(about)
    return MeasuredChoices(about)


@functools.cache
def _warn(about: str) -> None:
    log.warning("%s", about)


def read_file(path: Path) -> dict[str, Any]:
    """A file's content. MovaError unless it is whole and what `--choose` writes."""
    try:
        content = read_result(path)
        if content["kind"] != KIND:
            raise MovaError(f"it is of the kind '{content['kind']}'")
        for purposes in (content["choices"] | {}).values():
            for operators in purposes.values():
                for entry in operators.values():
                    if entry["implementation"] not in (entry["seconds"] | {}):
                        raise MovaError(f"'{entry['implementation']}' was not timed")
        _ = content["circumstances"]["device_name"], content["versions"] | {}
    except (MovaError, AttributeError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise MovaError(
            f"{path} holds no choices of operators: {reason}; remove it, and measure anew: {COMMAND}"
        ) from None
    return content


def mismatch(content: Mapping[str, Any], backend: Backend) -> str | None:
    """Why choices do not hold for a device and what is installed; None where they do."""
    measured, here = content["circumstances"]["device_name"], backend.describe()
    if measured != here:
        return f"measured on {measured}, this is {here}"
    then, now = content["versions"], versions(backend)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            return f"measured with {name} {then.get(name, 'absent')}, here it is {now.get(name, 'absent')}"
    return None
