"""One word for several settings of a command."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cyclopts import Parameter

from mova_engine.errors import MovaError, suggest


@dataclass(frozen=True)
class Shorthand:
    """One word for several settings of a group: `--memory stream`, or `memory: stream` in a file.

    group: the group's name. settings: by word. option: a dataclass whose only field, the group's name, is the option's
    type and help. heading: the group's own, as `section` gives it.
    """

    group: str
    settings: Mapping[str, Mapping[str, Any]]
    option: type
    heading: Parameter

    def expand(self, given: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Nested settings with the group's own in place of a word. MovaError, with the nearest word, for an unknown
        one; source: where it was given.
        """
        word = given.get(self.group)
        if not isinstance(word, str):
            return dict(given)
        if word not in self.settings:
            raise MovaError(
                f"{source}: unknown value '{word}'.{suggest(word, self.settings)} Known: {', '.join(self.settings)}"
            )
        return {**given, self.group: dict(self.settings[word])}

    @property
    def flag(self) -> str:
        """The option's name."""
        return f"--{self.group}"

    @property
    def declared(self) -> tuple[type, Parameter]:
        """The option's dataclass, and how a parser's parameter has it."""
        return self.option, Parameter(name="*", group=self.heading.group)

    def taken_off(self, argv: Sequence[str]) -> list[str]:
        """A command line without the option. MovaError where it has no value, or several."""
        kept, words, given = list[str](), iter(argv), 0
        for word in words:
            if word == self.flag and next(words, None) is None:
                raise MovaError(f"{self.flag} needs a value: {', '.join(self.settings)}")
            if word == self.flag or word.startswith(f"{self.flag}="):
                given += 1
            else:
                kept.append(word)
        if given > 1:
            raise MovaError(f"{self.flag} is given more than once")
        return kept
