"""The repository's own files, for tests that read them as text or as syntax trees."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE_FOLDERS = ("mova_engine", "kernels", "csrc", "benchmarks", "examples", "tests")
SUFFIXES = (".py", ".c", ".cpp", ".h", ".cu", ".cuh")


@cache
def code_files(*folders: str, suffixes: tuple[str, ...] = SUFFIXES) -> tuple[Path, ...]:
    """Source files under the given top-level folders (default: all of them, and setup.py), sorted."""
    found = [] if folders else [ROOT / "setup.py"]
    for folder in folders or CODE_FOLDERS:
        found += (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return tuple(sorted(found))


@cache
def python_files(*folders: str) -> tuple[Path, ...]:
    return code_files(*folders, suffixes=(".py",))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
