"""What is wrong with a command line, in one line: the nearest option or value, and what is missing."""

# cyclopts' own types are partial.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, RepeatArgumentError, UnknownOptionError
from cyclopts.argument import ArgumentCollection
from cyclopts.token import Token

from mova_engine.errors import suggest

# What is said of a value without a character.
EMPTY = "is empty: give it a value, or leave it out"


def refusal(error: CycloptsError, arguments: Callable[[], ArgumentCollection]) -> str:
    """The line for what cyclopts cannot take. arguments: gives those of the command."""
    if isinstance(error, UnknownOptionError):
        return _unknown(error, arguments())
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword or 'an option'} is given more than once"
    if isinstance(error, CoercionError):
        return _unfit(error)
    if isinstance(error, MissingArgumentError):
        return _missing(error)
    return " ".join(str(error).split())


def _missing(error: MissingArgumentError) -> str:
    """A command line that lacks what has no default, or a value after an option."""
    argument = error.argument
    if argument is None or error.keyword is not None or argument.tokens:
        return " ".join(str(error).split())
    name = argument.names[0]
    return f"missing: {name if argument.index is None else name.lstrip('-').upper()} (--help tells the options)"


def _unfit(error: CoercionError) -> str:
    """A value that its option does not take, and the one that is meant."""
    argument, token = error.argument, error.token
    if argument is None or token is None:
        return " ".join(str(error).split())
    named = f"{argument.name}{_place(token)}"
    choices = argument.get_choices(force=True)
    if choices:
        near = suggest(token.value, choices)
        return f"{named}: unknown value '{token.value}'.{near} Known: {', '.join(choices)}"
    if error.msg == EMPTY:
        return f"{named} {EMPTY}"
    return f"{named}: {error.msg}" if error.msg else " ".join(str(error).split())


def _place(token: Token) -> str:
    """Where a value was given, unless that is the command line."""
    return "" if token.source in ("", "cli") else f" in {token.source}"


def _unknown(error: UnknownOptionError, arguments: ArgumentCollection) -> str:
    """An unknown option, and the one that is meant: first by the last part of its name (--lr: --optim.lr)."""
    word = error.token.keyword or error.token.value
    if word.startswith("["):  # a key of a file, one pair of brackets for each level
        word = f"--{word.replace('][', '.').strip('[]')}"
    known = [name for argument in arguments for name in argument.names if name.startswith("--")]
    last = word.lstrip("-").rsplit(".", 1)[-1].replace("_", "-")
    same = [name for name in known if name.lstrip("-").rsplit(".", 1)[-1].replace("_", "-") == last]
    where = _place(error.token)
    if same:
        return f"unknown option {word}{where}. Did you mean {' or '.join(same)}?"
    near = suggest(word, known) or suggest(last, [name.rsplit(".", 1)[-1].lstrip("-") for name in known])
    return f"unknown option {word}{where}.{near.replace(chr(39), '')}"
