"""Options with keys of the user's own, as `--filters.NAME EXPRESSION`: one of them changes that key, and no other."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast, get_origin, get_type_hints


def with_other_keys(argv: Sequence[str], kind: type, under: Mapping[str, Any]) -> list[str]:
    """A command line to which the keys of `under` are added that stand beside those that it gives.

    kind: the settings' dataclass; under: what lies under the command line. Keys keep the order that they have there,
    new ones come last. A command line that gives a key twice, or without a value, stays as it is, to be refused.
    """
    words = list(argv)
    hints = get_type_hints(kind)
    for name in (field.name for field in fields(kind) if get_origin(hints[field.name]) is dict):
        below = under.get(name)
        if isinstance(below, Mapping):
            words = _merged(words, f"--{name.replace('_', '-')}.", cast(Mapping[str, Any], below))
    return words


def _merged(argv: list[str], prefix: str, below: Mapping[str, Any]) -> list[str]:
    given, kept, words = dict[str, str](), list[str](), iter(argv)
    for word in words:
        if not word.startswith(prefix):
            kept.append(word)
            continue
        key, equals, value = word.removeprefix(prefix).partition("=")
        said = value if equals else next(words, None)
        if said is None or key in given:
            return argv
        given[key] = said
    if not given or not below:
        return argv
    # With "=", as a value may begin with a dash.
    return [*kept, *(f"{prefix}{key}={value}" for key, value in {**below, **given}.items())]
