"""The help of a command's options, with the values that a recipe or a file gives them."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel


class HelpOfValues(DefaultFormatter):
    """Help that shows the defaults of the recipe and file under the command line, not those of the dataclass.

    hidden: options that this command refuses; they are not shown. A flag that is off is shown by the word that turns it
    on alone.
    """

    def __init__(self, values: Mapping[str, Any], hidden: Sequence[str] = ()) -> None:
        super().__init__()
        self.values, self.hidden = dict(_leaves(values)), hidden

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        """Print one group."""
        entries = [self._entry(entry) for entry in panel.entries if not set(entry.names) & set(self.hidden)]
        super().__call__(console, options, panel.copy(entries=entries))

    def _entry(self, entry: HelpEntry) -> HelpEntry:
        names = [name.lstrip("-").replace("-", "_").lower() for name in entry.names]
        value = next((self.values[name] for name in names if name in self.values), None)
        default = entry.default if value is None else _shown(value)
        if default in ("False", "()", "{}", "None"):
            return entry.copy(default=None, negative_names=())
        return entry.copy(default=default)


def _leaves(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _leaves(cast(Mapping[str, Any], value), f"{above}{name}.")
        else:
            found.append((f"{above}{name}", value))
    return found


def _shown(value: Any) -> str:
    return ", ".join(map(str, cast(list[Any], value))) if isinstance(value, list) else str(value)
