"""Machines that we do not have, described by records of packages, files and environment variables."""

from pathlib import Path

import pytest

from mova_engine.backend.health import Packages, Surroundings


class Fabricated:
    """A machine made of files: `record` installs a distribution, `write` puts a file under the root."""

    def __init__(self, folder: Path) -> None:
        self.site, self.root, self.work = (folder / name for name in ("site", "root", "work"))
        for path in (self.site, self.root, self.work):
            path.mkdir()
        self.environ: dict[str, str] = {}

    def record(self, name: str, version: str, requires: tuple[str, ...] = (), autoload: bool = False) -> None:
        """The metadata that pip would leave; no code."""
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]) + "\n")
        if autoload:
            (info / "entry_points.txt").write_text(f"[torch.backends]\n{name} = {name}:_autoload\n")

    def module(self, name: str, *files: str, text: str = "") -> None:
        """An importable package with the given further files."""
        for file in ("__init__.py", *files):
            path = self.site / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def write(self, path: str, text: str) -> None:
        """A file of the system."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def around(self) -> Surroundings:
        return Surroundings(Packages([str(self.site)]), self.environ, self.work, self.root)


@pytest.fixture
def machine(tmp_path) -> Fabricated:
    return Fabricated(tmp_path)
