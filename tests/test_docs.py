"""README and docs name things that exist: files, make targets, commands, recipes, operators."""

import re
from pathlib import Path

import pytest

from mova_engine.cli import COMMANDS
from source_tree import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP = ("mova_engine", "kernels", "csrc", "docs", "examples", "tests", "benchmarks", "requirements")
# Where a page's short paths may start.
BASES = (ROOT, ROOT / "mova_engine")


def _code_spans(page: Path) -> list[str]:
    """Inline code and indented code lines."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^    (.+)$", text, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_exist(page):
    named = {
        word.rstrip("/")
        for span in _code_spans(page)
        for word in re.findall(r"(?<![\w./:-])[\w.-]+(?:/[\w.-]+)+/?", span)
        if word.split("/")[0] in TOP or word.endswith((".py", ".yaml"))
    }
    missing = [name for name in named if not any((base / name).exists() for base in BASES)]
    assert not missing, missing
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", page.read_text(encoding="utf-8"))
    assert all((page.parent / link).exists() for link in links)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_and_commands_named_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    spans = _code_spans(page)
    assert {m[1] for span in spans if (m := re.match(r"make ([a-z][a-z-]*)", span))} <= targets
    assert {m[1] for span in spans if (m := re.match(r"mova ([a-z][a-z-]*)", span))} <= set(COMMANDS)
    for span in spans:
        for module in re.findall(r"python -m mova_engine\.([\w.]+)", span):
            path = ROOT.joinpath("mova_engine", *module.split("."))
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_two_commands_come_first():
    """A newcomer finds both in the first code block of the README."""
    first = re.search(r"(?:^    .+\n)+", (ROOT / "README.md").read_text(), re.M)[0]
    assert [line.split()[1] for line in first.splitlines()] == ["nano", "test"]
