"""`mova completion SHELL`: the script that completes commands and options."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from cyclopts import App

from mova_engine.config.command import Command

ABOUT = """Print the script that completes commands and options in a shell.

For bash: mova completion bash > ~/.local/share/bash-completion/completions/mova
For fish: mova completion fish > ~/.config/fish/completions/mova.fish
For zsh: mova completion zsh > FOLDER/_mova, in a folder of $fpath
"""


@dataclass(frozen=True, kw_only=True)
class CompletionConfig:
    """For which shell."""

    shell: Literal["bash", "zsh", "fish"] = field(kw_only=False)
    """The shell that reads the script."""


COMPLETION = Command("mova completion", CompletionConfig, ABOUT)


def completion_app(commands: Mapping[str, tuple[str, str]]) -> App:
    """All commands as one application. commands: name -> (module, what it does)."""
    root = App(name="mova", help="The engine for MOVA.", version_flags=())
    groups: dict[tuple[str, ...], App] = {(): root}
    for name, (module, text) in commands.items():
        words = tuple(name.split())
        found = declared(module)
        several: Mapping[str, Command[Any]] | None = found.get("MEASUREMENTS")
        if several is None:
            (command,) = (cast(Command[Any], value) for value in found.values() if isinstance(value, Command))
            app: App = command.app(words[-1], text)
            _group(groups, words[:-1]).command(app)
            groups[words] = app  # `eval` is a command, and the group of `eval lag`
        else:
            for last, command in several.items():
                _group(groups, words).command(command.app(last))
    return root


def declared(module: str) -> Mapping[str, Any]:
    """The names of a program's module, or of the one that has its commands: a program that also runs where nothing
    makes commands of settings names that in SETTINGS.
    """
    found = vars(importlib.import_module(module))
    return vars(importlib.import_module(found["SETTINGS"])) if isinstance(found.get("SETTINGS"), str) else found


def _group(groups: dict[tuple[str, ...], App], words: tuple[str, ...]) -> App:
    """The application of the commands that begin with these words."""
    if words not in groups:
        groups[words] = App(name=words[-1])
        _group(groups, words[:-1]).command(groups[words])
    return groups[words]


def main(argv: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> int:
    """Print the script for the commands of `completion_app`; returns 0."""
    config = COMPLETION.parse(argv)
    if config is None:
        return 0
    sys.stdout.write(completion_app(commands).generate_completion(prog_name="mova", shell=config.shell))
    return 0
