"""docs/api.md: its snippets run, in order, and show every public name."""

import ast
import re
import runpy
import warnings

import mova_engine
from source_tree import ROOT

PAGE = ROOT / "docs" / "api.md"


def page_code() -> str:
    """All snippets of the page: the lines that are indented by four columns, and the blank ones between them."""
    return re.sub(r"^(?!    |$).*\n", "", PAGE.read_text(encoding="utf-8"), flags=re.M).replace("\n    ", "\n").lstrip()


def test_the_snippets_run_as_one_program(tmp_path, monkeypatch):
    program = tmp_path / "page.py"
    program.write_text(page_code(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=DeprecationWarning, module="__main__")
        runpy.run_path(str(program), run_name="__main__")
    assert (tmp_path / "ball.mp4").stat().st_size > 1000
    assert (tmp_path / "ball.wav").stat().st_size > 1000
    assert (tmp_path / "merged" / "model_index.json").exists()


def test_the_page_shows_every_public_name():
    imported = {
        alias.name
        for node in ast.walk(ast.parse(page_code()))
        if isinstance(node, ast.ImportFrom) and node.module == "mova_engine"
        for alias in node.names
    }
    assert imported == set(mova_engine.__all__)
