"""README and docs name things that exist: files, make targets, commands, recipes, operators."""

import re
from pathlib import Path

import pytest

from mova_engine.cli import COMMANDS
from source_tree import ROOT, python_files, relative

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
    words = {name.split()[0] for name in COMMANDS}
    assert {m[1] for span in spans if (m := re.match(r"mova ([a-z][a-z-]*)", span))} <= words
    for span in spans:
        for module in re.findall(r"python -m mova_engine\.([\w.]+)", span):
            path = ROOT.joinpath("mova_engine", *module.split("."))
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_every_suite_that_must_be_asked_for_has_a_target_that_ci_runs_and_the_pages_name():
    """A test that `make test` leaves out, but for want of a device or for its length, runs in another target."""
    found = re.findall(r'addoption\("(--\w+)"', (ROOT / "tests" / "conftest.py").read_text())
    options = set(found) - {"--slow", "--device"}
    commands = dict(re.findall(r"^(test-[a-z]+):.*\n\t(.+)$", (ROOT / "Makefile").read_text(), re.M))
    ran = set(re.findall(r"make (test-[a-z]+) ", (ROOT / ".ci" / "run").read_text()))
    assert ran == set(commands) and len(options) >= 3
    for option in options:
        (target,) = (name for name, command in commands.items() if f" {option} " in command)
        assert f"`make {target}`" in (ROOT / "README.md").read_text()
        assert f"(make {target})" in (ROOT / "pyproject.toml").read_text()


def test_the_two_commands_come_first():
    """A newcomer finds both in the first code block of the README."""
    first = re.search(r"(?:^    .+\n)+", (ROOT / "README.md").read_text(), re.M)[0]
    assert [line.split()[1] for line in first.splitlines()] == ["nano", "test"]


# `room.module` and `room.module.name` in docstrings, comments and pages; names of files end otherwise.
_REFERENCE = re.compile(r"`(?:mova_engine\.)?([a-z]\w*)((?:\.[A-Za-z_]\w*)+)`")
_FILE_ENDINGS = ("py", "json", "yaml", "safetensors", "png", "svg", "md")


def unresolved(text: str) -> list[str]:
    """References to modules of the engine's rooms that do not exist."""
    rooms, found = {path.name for path in (ROOT / "mova_engine").iterdir() if path.is_dir()}, []
    for match in _REFERENCE.finditer(text):
        place, names = ROOT / "mova_engine" / match[1], match[2][1:].split(".")
        if match[1] not in rooms or names[-1] in _FILE_ENDINGS:
            continue
        while names and (place / names[0]).is_dir():
            place /= names.pop(0)
        inside = place / "__init__.py"
        if names and not (place / f"{names[0]}.py").exists() and names[0] not in inside.read_text(encoding="utf-8"):
            found.append(match[0])
    return found


def test_modules_named_in_prose_exist():
    parts = ("mova_engine", "kernels", "tests", "examples")
    sources = [path for part in parts for path in python_files(part) if path.name != Path(__file__).name]
    found = {relative(path): names for path in sources if (names := unresolved(path.read_text(encoding="utf-8")))}
    found |= {page.name: names for page in PAGES if (names := unresolved(page.read_text(encoding="utf-8")))}
    # A setting of a tower's configuration, not a module of the room.
    assert found == {"mova_engine/models/tower.py": ["`config.num_layers`"]}
    assert unresolved("as `ops.recall` and `data.media.decode.read_clip` say") == ["`ops.recall`"]
