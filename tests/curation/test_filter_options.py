"""Filters on the command line: one of them changes that filter, and leaves the recipe's others."""

import pytest

from mova_engine.config.curation_recipes import CURATE
from mova_engine.config.recipes import TRAIN
from mova_engine.errors import MovaError

BASE = ["films", "--out", "out"]


def filters(*options):
    config = CURATE.parse([*BASE, *options])
    assert config is not None
    return config.filters


def test_a_filter_is_changed_in_its_place_or_comes_last():
    recipe = filters()
    changed = filters("--filters.audible", "silence <= 0.5", "--filters.early=-0.2 <= desync_offset")
    assert list(changed) == [*recipe, "early"]
    assert changed == {**recipe, "audible": "silence <= 0.5", "early": "-0.2 <= desync_offset"}
    assert filters("--filters.moving", "True", "--workers", "3") == {**recipe, "moving": "True"}


def test_a_recipe_builds_on_another(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("base: curate-laptop\nfilters:\n  audible: silence <= 0.1\n  lively: motion >= 1\n")
    found = filters("--recipe", str(own), "--filters.lively", "motion >= 2")
    assert list(found) == [*filters(), "lively"]
    assert (found["audible"], found["lively"]) == ("silence <= 0.1", "motion >= 2")


def test_what_is_given_twice_or_without_a_value_is_refused():
    for options, said in (
        (["--filters.a", "True", "--filters.a", "False"], "more than once"),
        (["--filters.a"], "argument"),
    ):
        with pytest.raises(MovaError, match=said):
            filters(*options)


def test_other_commands_keep_their_keys_too(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("ops:\n  attention: reference\n")
    config = TRAIN.parse(["--config", str(own), "--ops.rms_norm", "reference"])
    assert config is not None and config.ops == {"attention": "reference", "rms_norm": "reference"}
