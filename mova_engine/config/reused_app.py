"""cyclopts' App, which takes the declaration of a command's options apart once a process, and finds options by name.

cyclopts takes 130 options in groups apart at each command line, and compares each key of a recipe with all of them:
more than a third of the time of the first parse in a process, and four fifths of that of any other.
"""

import copy
from collections.abc import Callable, Hashable
from typing import Any

from cyclopts import App, Parameter
from cyclopts.argument import Argument, ArgumentCollection

_ASSEMBLED: dict[tuple[Hashable, bool], ArgumentCollection] = {}


class TypedArgument(Argument):
    """An argument whose converted value is taken as it is. cyclopts has it checked once more by pydantic wherever the
    program, or something that it imports, has imported that; pydantic refuses options that are left out.
    """

    __slots__ = ()

    def validate(self, value: Any) -> None:
        """No option has a validator of its own."""


class NamedArguments(ArgumentCollection):
    """The arguments of a command, found by their names at once; what has no such name is searched for as usual."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)  # pyright: ignore[reportUnknownMemberType] cyclopts
        # Collections that cyclopts makes of parts of this one are searched.
        self.named: dict[str, Argument] = {}

    def match(
        self, term: str | int, *, transform: Callable[[str], str] | None = None, delimiter: str = "."
    ) -> tuple[Argument, tuple[str, ...], Any]:
        """The argument of a name, the keys below it, and the value that the name alone gives; ValueError if none."""
        argument = self.named.get(_dashed(term)) if isinstance(term, str) and transform is None else None
        if argument is None:
            return super().match(term, transform=transform, delimiter=delimiter)
        return argument, *argument.match(term, delimiter=delimiter)

    @classmethod
    def unused(cls, assembled: ArgumentCollection) -> "NamedArguments":
        """Arguments without tokens in the same tree, which a parser can fill."""
        fresh = {id(argument): copy.copy(argument) for argument in assembled}
        for argument in fresh.values():
            argument.__class__ = TypedArgument
            argument.tokens = []
            argument.children = ArgumentCollection(fresh[id(child)] for child in argument.children)
        found = cls(fresh.values())
        for argument in found:
            if argument.parse:
                for name in argument.parameter.name or ():
                    found.named.setdefault(_dashed(name), argument)
        return found


def _dashed(name: str) -> str:
    """Underscores and dashes are the same to cyclopts."""
    return name.replace("_", "-")


class ReusedApp(App):
    """A command whose arguments are assembled once for all apps of the same `declared`: whatever its function's
    signature is made of. None: each time.
    """

    declared: Hashable = None

    def assemble_argument_collection(
        self, *, default_parameter: Parameter | None = None, parse_docstring: bool = False
    ) -> ArgumentCollection:
        """The arguments, none of them filled. parse_docstring: with their help."""
        if self.declared is None or default_parameter is not None:
            return super().assemble_argument_collection(
                default_parameter=default_parameter, parse_docstring=parse_docstring
            )
        key = (self.declared, parse_docstring)
        if key not in _ASSEMBLED:
            _ASSEMBLED[key] = super().assemble_argument_collection(parse_docstring=parse_docstring)
        return NamedArguments.unused(_ASSEMBLED[key])
