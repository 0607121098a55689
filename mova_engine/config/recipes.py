"""Recipes: YAML files of settings, built on one another by `base:`, overridden by the command line.

A recipe is a name in mova_engine/config/recipes or the path of a YAML file, such as the config.yaml of an earlier run.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from mova_engine.config.train import TrainConfig
from mova_engine.errors import MovaError, suggest

DEFAULT = "nano"
_BASE = "base"

HELP = """Train or fine-tune a model by a recipe.

Without options it trains the nano model on bouncing balls that it writes itself. Options override the recipe's
settings, which --print-config shows. A run leaves checkpoints, metrics.jsonl, tensorboard/, loss_curve.png and
config.yaml in its folder, and goes on from its newest checkpoint when started again.
Exit codes: 0 done, 2 an error, 129, 130 or 143 stopped by SIGHUP, Ctrl-C or SIGTERM after a checkpoint was saved.
SIGUSR1 saves a checkpoint and goes on.
"""


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the engine."""
    files = resources.files("mova_engine.config").joinpath("recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return a recipe's settings, those of its bases included. MovaError names what is wrong and where."""
    return _merged(recipe, ())


def load_config(recipe: str = DEFAULT, **overrides: Any) -> TrainConfig:
    """Return a recipe's configuration with fields replaced, nested ones as mappings: `optim={"lr": 1e-3}`.

    Raises MovaError for an unknown recipe or field (with the nearest name) and for a value that does not fit.
    """
    settings = _merge(read_recipe(recipe), overrides)
    return _parse([], {"name": Path(recipe).stem, **settings}, f"recipe {recipe}")


def parse_command_line(argv: Sequence[str]) -> tuple[TrainConfig | None, bool]:
    """Return the configuration that a command line asks for, and whether it only wants to see it.

    The configuration is None where the command line asked for help, which has then been printed.
    """
    for option, value in itertools.pairwise(argv):
        # A path that is empty, as by an unset variable in a script, would be the current folder.
        if not value.strip():
            raise MovaError(f"{option} is empty: give it a value, or leave it out")
    recipe = _wanted_recipe(argv)
    settings = {"name": Path(recipe).stem, **read_recipe(recipe)}
    shown = []
    config = _parse(argv, settings, f"recipe {recipe}", shown.append)
    return config, bool(shown and shown[0])


def to_yaml(config: TrainConfig) -> str:
    """The configuration as a recipe file that gives it again."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain nested values (paths as text), fit for YAML and JSON."""
    return _plain(dataclasses.asdict(config))


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration, as `to_dict` gives it, with the defaults of settings that came after it was saved."""
    return _merge(to_dict(TrainConfig()), saved)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _wanted_recipe(argv: Sequence[str]) -> str:
    """The value of --recipe, which must be known before the rest can be parsed over it."""
    recipe = DEFAULT
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == "--recipe" and following is not None:
            recipe = following
        elif word.startswith("--recipe="):
            recipe = word.partition("=")[2]
    return recipe


def _merged(recipe: str, above: tuple[str, ...]) -> dict[str, Any]:
    if recipe in above:
        raise MovaError(f"recipe '{recipe}' is its own base ({' -> '.join((*above, recipe))})")
    settings = _read(recipe)
    base = settings.pop(_BASE, None)
    return settings if base is None else _merge(_merged(str(base), (*above, recipe)), settings)


def _read(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise MovaError(f"there is no recipe file {recipe}")
        text = path.read_text(encoding="utf-8")
    elif recipe in recipe_names():
        text = resources.files("mova_engine.config").joinpath("recipes", f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        names = recipe_names()
        raise MovaError(
            f"unknown recipe '{recipe}'.{suggest(recipe, names)} Known: {', '.join(names)}, or the path of a .yaml file"
        )
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise MovaError(f"recipe {recipe} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise MovaError(f"recipe {recipe} must hold a mapping of settings, got {type(settings).__name__}")
    return settings


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    """None stands for "not given", which a configuration source says by silence."""
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if value is not None
    }


def _parse(
    argv: Sequence[str], settings: Mapping[str, Any], source: str, show: Callable[[bool], None] = lambda _: None
) -> TrainConfig | None:
    """Lay the command line over `settings`, both over the defaults. None where help was asked for and printed."""
    app = App(
        name="python -m mova_engine.train",
        help=HELP,
        config=Dict(_plain(_without_none(settings)), source=source),
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
        version_flags=(),
    )

    @app.default
    def run(
        *,
        recipe: str = DEFAULT,
        print_config: Annotated[bool, Parameter(negative="")] = False,
        config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 (frozen)
    ) -> TrainConfig:
        show(print_config)
        return config

    try:
        return app(list(argv))
    except CycloptsError as error:
        raise MovaError(" ".join(str(error).split())) from error
