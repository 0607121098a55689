"""The commands on docs/plan.md and what they print. Run as a program, it renews the page."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "plan.md"
_INDENT, _PROMPT = "    ", "    $ mova plan "


def blocks(text: str) -> Iterator[tuple[str, str, int, int]]:
    """(arguments, printed text, first line, line after the last) of each command block."""
    lines = text.split("\n")
    for start, line in enumerate(lines):
        if not line.startswith(_PROMPT):
            continue
        end = start + 1
        while end < len(lines) and (lines[end].startswith(_INDENT) or not lines[end]):
            end += 1
        while not lines[end - 1]:
            end -= 1
        shown = "\n".join(printed.removeprefix(_INDENT) for printed in lines[start + 1 : end])
        yield line.removeprefix(_PROMPT), shown.strip("\n"), start, end


def output(arguments: str) -> str:
    """What the command prints, run in the repository's root."""
    from mova_engine.plan.__main__ import main

    held, before = StringIO(), Path.cwd()
    os.chdir(ROOT)
    try:
        with redirect_stdout(held):
            main(shlex.split(arguments))
    finally:
        os.chdir(before)
    return held.getvalue().strip("\n")


def renewed(text: str) -> str:
    """The page with every block's output made again."""
    lines = text.split("\n")
    for arguments, _, start, end in reversed(list(blocks(text))):
        printed = [_INDENT + line if line else "" for line in output(arguments).split("\n")]
        lines[start + 1 : end] = ["", *printed]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
