"""What a device can tell of its own health: findings, and the surroundings in which they are made.

Surroundings are read, never changed: records of installed packages (nothing is imported), environment variables, files.
They are arguments, so that a test can describe a machine that it does not have.
"""

import importlib.machinery
import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of a report. level: "ok", "note" (works, with a risk or a limit) or "problem" (training stops, or
    computes wrong numbers). what: the fact; do: the remedy, where there is one.
    """

    level: str
    what: str
    do: str = ""


@dataclass(frozen=True)
class Concern:
    """What to say of an environment variable whose value matches the regular expression `value` ("" for unset)."""

    value: str
    level: str
    what: str
    do: str


@dataclass(frozen=True)
class Variable:
    """An environment variable that matters: its meaning and the values to worry about. private: a value that tells of
    the user's network or files, which a report does not show.
    """

    name: str
    meaning: str
    concerns: tuple[Concern, ...] = ()
    private: bool = False


class Packages:
    """Installed packages by their records in the folders of `path`; None: where this interpreter looks."""

    def __init__(self, path: Sequence[str] | None = None) -> None:
        self.path = list(sys.path if path is None else path)

    def _record(self, name: str) -> importlib.metadata.Distribution | None:
        return next(iter(importlib.metadata.distributions(name=name, path=self.path)), None)

    def version(self, name: str) -> str | None:
        """The installed version of a distribution; None where there is none."""
        record = self._record(name)
        return record.version if record else None

    def requires(self, name: str) -> list[str]:
        """The requirement lines of a distribution; empty where it is not installed."""
        record = self._record(name)
        return list(record.requires or ()) if record else []

    def autoloaded(self) -> list[str]:
        """Distributions that `import torch` imports too, as device backends."""
        records = importlib.metadata.distributions(path=self.path)
        return sorted(r.name for r in records if any(entry.group == "torch.backends" for entry in r.entry_points))

    def has_module(self, name: str) -> bool:
        """Whether a top-level module of that name can be found."""
        return importlib.machinery.PathFinder.find_spec(name, self.path) is not None

    def module_folder(self, name: str) -> Path | None:
        """The folder of a top-level package; None where it is absent or a single file."""
        spec = importlib.machinery.PathFinder.find_spec(name, self.path)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        return Path(folders[0]) if folders else None

    def torch_is_cuda_build(self) -> bool:
        """Whether the installed torch is a build for NVIDIA GPUs: by its version's tag, else by what it requires."""
        _, _, tag = (self.version("torch") or "").partition("+")
        if tag:
            return tag.startswith("cu")
        return any(line.lower().startswith(("nvidia-", "cuda-")) for line in self.requires("torch"))


@dataclass(frozen=True)
class Surroundings:
    """Where an examination takes place. folder: where runs and caches will be written; root: of the file system."""

    packages: Packages = field(default_factory=Packages)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    folder: Path = Path(".")
    root: Path = Path("/")


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) for "2.13.0.post2+cpu", (8, 3) for "8.3.RC1"."""
    return tuple(int(part) for part in re.findall(r"^(?:\d+\.?)*", version)[0].split(".") if part)


def examine_variables(variables: Sequence[Variable], environ: Mapping[str, str]) -> list[Finding]:
    """A finding for each variable that is set, or whose absence matters: the first concern that fits, else ok."""
    found = []
    for variable in variables:
        value = environ.get(variable.name, "")
        shown = f"{variable.name}={'(set, not shown)' if variable.private else value}" if value else variable.name
        concern = next((c for c in variable.concerns if re.fullmatch(c.value, value)), None)
        if concern:
            found.append(Finding(concern.level, f"{shown}{'' if value else ' is not set'}: {concern.what}", concern.do))
        elif value:
            found.append(Finding(OK, f"{shown}: {variable.meaning}"))
    return found
