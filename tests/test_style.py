"""House rules that a tool can check, so that nobody needs to remember them."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from source_tree import ROOT, code_files, python_files, relative, tree

MOST_LINES = 450
# Files outside backend/ that name devices because devices are their data.
NAMES_DEVICES = {
    # The devices on which each implementation runs, and what is known of machines that are not here.
    "mova_engine/ops/table.py",
    "mova_engine/ops/attention_table.py",
    "mova_engine/ops/lossy_table.py",
    "mova_engine/ops/machine.py",
    # Makes devices that are not here.
    "mova_engine/rehearsal/fake_devices.py",
    "mova_engine/rehearsal/rehearse.py",
}
_DEVICE = re.compile(r"(cuda|npu)(:\d+)?")
_MARKER = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
_MACHINE_PATH = re.compile(r"(?<![\w.$}])/(home|root|opt|mnt|srv|work|Users)/\w")


def _text_files() -> list[Path]:
    others = [ROOT / name for name in ("README.md", "Makefile", "CMakeLists.txt", "pyproject.toml", ".ci/run")]
    others += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "requirements").glob("*.txt")]
    others += (ROOT / "mova_engine" / "config" / "recipes").glob("*.yaml")
    return [*code_files(), *others]


def _lines_matching(pattern: re.Pattern, paths) -> list[str]:
    return [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def device_names(source: ast.Module) -> list[str]:
    """Device strings, and uses of torch.cuda / torch.npu, in a module."""
    found = []
    for node in ast.walk(source):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _DEVICE.fullmatch(node.value):
            found.append(f"line {node.lineno}: '{node.value}'")
        if isinstance(node, ast.Attribute) and node.attr in ("cuda", "npu"):
            found.append(f"line {node.lineno}: .{node.attr}")
    return found


def test_no_file_is_too_long():
    sizes = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in code_files()}
    assert {name: size for name, size in sizes.items() if size > MOST_LINES} == {}, "a file this long wants to be two"


def test_devices_are_named_in_backend_only():
    found = [
        f"{relative(path)}, {text}"
        for path in python_files("mova_engine")
        if not relative(path).startswith("mova_engine/backend/") and relative(path) not in NAMES_DEVICES
        for text in device_names(tree(path))
    ]
    assert not found, "ask the backend instead:\n" + "\n".join(found)


@pytest.mark.parametrize("source", ["x.to('cuda')", "device = 'npu:1'", "torch.cuda.synchronize()", "x.cuda()"])
def test_a_stray_device_would_be_seen(source):
    assert device_names(ast.parse(source))


def test_no_markers_of_unfinished_work():
    assert not _lines_matching(_MARKER, _text_files())


def test_no_machine_paths():
    found = _lines_matching(_MACHINE_PATH, _text_files())
    assert not found, "\n".join(found)


def test_nothing_claims_hardware_that_it_has_not_run_on():
    """Until a run on an NPU is recorded: "verified by emulation, contract and compilation"."""
    claim = re.compile(r"(?i)\b(verified|tested|validated|proven) on (an? |real )*(npu|ascend|910)")
    assert claim.search("verified on NPU") and claim.search("tested on a real 910A2")
    texts = [path for path in _text_files() if path != Path(__file__)]
    assert not (found := _lines_matching(claim, texts)), "\n".join(found)


def test_every_module_says_what_it_is_for():
    silent = [relative(path) for path in python_files() if ast.get_docstring(tree(path)) is None]
    assert not silent, "no docstring: " + ", ".join(silent)


# A line of prose that ends in mid-sentence, and one that goes on with it.
_MARGIN = re.compile(r"\s*(?:# *)?")
_OPEN, _GOES_ON = re.compile(r"[\w,)`]$"), re.compile(r"[a-z0-9(`]")
SHORT, FULL = 100, 120


def ragged(lines: list[str]) -> list[int]:
    """Numbers of lines of a docstring or comment that end early: the next line's first word would have fitted.

    Code, tables and hanging indents are deeper than the text around them, or have columns, and are left alone; so are
    lines above SHORT columns, where an author may have kept words together. Two lines whose break parts "[b, s," from
    "d]" are ragged however long.
    """
    found, margins = [], [len(_MARGIN.match(line)[0]) for line in lines]
    usual = min(margin for margin, line in zip(margins, lines, strict=True) if line.strip())
    for number, (line, following) in enumerate(pairwise(lines)):
        text, rest = line[margins[number] :], following[margins[number + 1] :]
        level = margins[number] == margins[number + 1] == usual
        if not level or "  " in text or not _GOES_ON.match(rest) or not _OPEN.search(text):
            continue
        fits = len(line) + 1 + len(rest.split()[0]) <= FULL
        if (len(line) < SHORT and fits) or re.search(r"\[[a-z\d, ]*$", text):
            found.append(number)
    return found


def prose_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Docstrings and comments of a module: their first line's number, and their lines."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.walk(tree(path)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            yield node.body[0].lineno, lines[node.body[0].lineno - 1 : node.body[0].end_lineno]
    comments = [number for number, line in enumerate(lines, 1) if line.lstrip().startswith("# ")]
    for _, group in groupby(enumerate(comments), lambda pair: pair[1] - pair[0]):
        block = [number for _, number in group]
        yield block[0], [lines[number - 1] for number in block]


def test_prose_fills_its_lines():
    found = [
        f"{relative(path)}:{first + number}"
        for path in python_files()
        for first, lines in prose_of(path)
        for number in ragged(lines)
    ]
    assert not found, "wrap anew: " + ", ".join(found)


@pytest.mark.parametrize(
    "text, lines",
    [
        ('    """Pictures are placed by\n    their timestamps.\n    """', [0]),
        ("# The first\n# and the second, which\n# follows it.", [0, 1]),
        (f"# {'words ' * 18}of [b, s,\n# d].", [0]),
        ("# A sentence.\n# another that begins\n#     deeper, as code does", []),
        (f"# {'words ' * 17}\n# that go on", []),
        ("# one    of a table\n# two    of it", []),
    ],
)
def test_a_ragged_line_would_be_seen(text, lines):
    assert ragged(text.splitlines()) == lines


def test_ruff_is_content():
    """Line length, import order, unused names, commented-out code, print in library modules: see pyproject.toml."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
