"""Recipes: YAML files of settings, built on one another by `base:`, overridden by a user's file and the command line.

A recipe is a name in mova_engine/config/recipes or the path of a YAML file, such as the config.yaml of an earlier run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mova_engine.config.command import Command, Recipes, configuring, merge, section, to_plain
from mova_engine.config.from_tools import aitk_job, musubi_options
from mova_engine.config.launch import LaunchOptions
from mova_engine.config.memory import MODES, MemoryMode
from mova_engine.config.recipe_files import RecipeFiles
from mova_engine.config.shorthand import Shorthand
from mova_engine.config.train import TrainConfig

DEFAULT = "nano"

ABOUT = """Train or fine-tune a model by a recipe.

Without options it trains the nano model on bouncing balls that it writes itself. Options override the recipe's
settings, which --print-config shows. A run leaves checkpoints, metrics.jsonl, tensorboard/, loss_curve.png and
config.yaml in its folder, and goes on from its newest checkpoint when started again.

Exit codes: 0 done, 2 an error, 129, 130 or 143 stopped by SIGHUP, Ctrl-C or SIGTERM after a checkpoint was saved.
SIGUSR1 saves a checkpoint and goes on.
"""


@dataclass(frozen=True)
class TrainOptions(LaunchOptions):
    """Options of the trainer that are no settings."""

    from_musubi: Annotated[Path | None, configuring()] = None
    """File of musubi-tuner, whose settings are taken over those of the recipe lora: a shell script with its command, or
    a .toml of options or of a data set. What each key becomes is printed; with --print-config as a recipe of one's own.
    """
    from_aitk: Annotated[Path | None, configuring()] = None
    """The same for a job's file of ai-toolkit."""


_MEMORY_MODE = Shorthand("memory", MODES["lora"], MemoryMode, section("Memory"))
_FILES = RecipeFiles("recipes", lambda settings, source: _MEMORY_MODE.expand(settings, f"memory in {source}"))


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the engine."""
    return _FILES.names()


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return a recipe's settings, those of its bases included. MovaError names what is wrong and where."""
    return _FILES.read(recipe)


TRAIN = Command(
    "mova train",
    TrainConfig,
    ABOUT,
    Recipes(read_recipe, DEFAULT),
    hidden=("--parallel.cfg", "--memory.expert", "--memory.idle", "--memory.vae"),
    beside=TrainOptions,
    shorthands=(_MEMORY_MODE,),
    translators={"--from-musubi": musubi_options.translate, "--from-aitk": aitk_job.translate},
)


def load_config(recipe: str = DEFAULT, **overrides: Any) -> TrainConfig:
    """Return a recipe's configuration with fields replaced, nested ones as mappings: `optim={"lr": 1e-3}`.

    Raises MovaError for an unknown recipe or field (with the nearest name) and for a value that does not fit.
    """
    settings = merge(read_recipe(recipe), _MEMORY_MODE.expand(overrides, "memory"))
    return TRAIN.fill({"name": Path(recipe).stem, **settings}, f"recipe {recipe}")


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration, as `to_plain` gives it, with the defaults of settings that came after it was saved."""
    return merge(to_plain(TrainConfig()), saved)
