"""Recipes: YAML files of settings in a folder beside this one, built on one another by `base:`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mova_engine.config.command import merge, parse_yaml, read_yaml
from mova_engine.errors import MovaError, suggest

_BASE = "base"


def _as_read(settings: dict[str, Any], source: str) -> dict[str, Any]:
    return settings


@dataclass(frozen=True)
class RecipeFiles:
    """The recipes of a command. folder: of `mova_engine/config`. expanded: what a recipe's settings become, given where
    they come from, before its base lies under them.
    """

    folder: str
    expanded: Callable[[dict[str, Any], str], dict[str, Any]] = _as_read

    def names(self) -> tuple[str, ...]:
        """Names of the recipes that come with the engine."""
        files = resources.files("mova_engine.config").joinpath(self.folder).iterdir()
        return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))

    def read(self, recipe: str) -> dict[str, Any]:
        """The settings of a recipe, a name or the path of a .yaml file, those of its bases included. MovaError names
        what is wrong and where.
        """
        return self._merged(recipe, ())

    def _merged(self, recipe: str, above: tuple[str, ...]) -> dict[str, Any]:
        if recipe in above:
            raise MovaError(f"recipe '{recipe}' is its own base ({' -> '.join((*above, recipe))})")
        settings = self.expanded(self._one(recipe), f"recipe {recipe}")
        base = settings.pop(_BASE, None)
        return settings if base is None else merge(self._merged(str(base), (*above, recipe)), settings)

    def _one(self, recipe: str) -> dict[str, Any]:
        if Path(recipe).suffix in (".yaml", ".yml"):
            return read_yaml(Path(recipe))
        names = self.names()
        if recipe not in names:
            known = f"Known: {', '.join(names)}, or the path of a .yaml file"
            raise MovaError(f"unknown recipe '{recipe}'.{suggest(recipe, names)} {known}")
        text = resources.files("mova_engine.config").joinpath(self.folder, f"{recipe}.yaml").read_text(encoding="utf-8")
        return parse_yaml(text, f"recipe {recipe}")
