"""The command line and the recipes of curation: YAML files in mova_engine/config/curation_recipes."""

from pathlib import Path
from typing import Any

from mova_engine.config.command import Command, Recipes, merge
from mova_engine.config.curate import CurateConfig
from mova_engine.config.recipe_files import RecipeFiles

DEFAULT_CURATION = "curate-laptop"
CURATION_RECIPES = RecipeFiles("curation_recipes")

ABOUT = """Cut films into clips, measure these, and keep those that meet the recipe's filters.

Writes a table of all clips (clips.parquet), a list of those that are kept (metadata.jsonl, which mova train --data
takes) and the funnel from films to these (funnel.json); mova curate report makes a page of it. Every result is kept by
content: an interrupted run goes on where it was, a changed filter measures nothing again.

Exit codes: 0 done, 1 too many units or clips failed (--most-failed), 2 an error, 129, 130 or 143 stopped by a signal.
"""

CURATE = Command("mova curate", CurateConfig, ABOUT, Recipes(CURATION_RECIPES.read, DEFAULT_CURATION))


def load_curation(recipe: str = DEFAULT_CURATION, **settings: Any) -> CurateConfig:
    """A recipe's configuration with fields replaced, nested ones as mappings: `raw`, `out`, `cut={"bars": "keep"}`.

    Raises MovaError for an unknown recipe or field (with the nearest name) and for a value that does not fit.
    """
    return CURATE.fill(
        merge({"name": Path(recipe).stem, **CURATION_RECIPES.read(recipe)}, settings), f"recipe {recipe}"
    )
