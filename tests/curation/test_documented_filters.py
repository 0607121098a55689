"""Filters and marks that docs/curation.md shows are such: they name columns that there are."""

import re

import pytest

from mova_engine.curation.filter_expression import parse_filter
from source_tree import ROOT

SHOWN = re.findall(r"^      ([a-z-]+): (.*[<>=].*)$", (ROOT / "docs" / "curation.md").read_text(), re.M)


def test_some_are_shown():
    assert {"one-voice", "logo", "dubbed"} <= {name for name, _ in SHOWN}


@pytest.mark.parametrize(("name", "text"), SHOWN, ids=[name for name, _ in SHOWN])
def test_what_is_shown_can_be_read(name, text):
    assert parse_filter(name, text)
