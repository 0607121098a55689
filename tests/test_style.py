"""House rules that a tool can check, so that nobody needs to remember them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from source_tree import ROOT, code_files, python_files, relative, tree

MOST_LINES = 450
# Files outside backend/ that name devices because devices are their data.
NAMES_DEVICES = {
    "mova_engine/ops/table.py",  # the devices on which each implementation runs
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


def test_ruff_is_content():
    """Line length, import order, unused names, commented-out code, print in library modules: see pyproject.toml."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
