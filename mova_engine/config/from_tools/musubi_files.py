"""Reads the files in which people keep musubi-tuner's options: shell scripts and .toml files."""

# What a file holds may be of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

from mova_engine.errors import MovaError

_SCRIPT = re.compile(r"\w+_train_network(\.py)?$")
_ASSIGNMENT = re.compile(r"^\s*(?:export\s+|set\s+)?([A-Za-z_]\w*)=(.*)$")
_QUOTED = re.compile(r"""(["'])(.*?)\1""")
# An assignment's value that a training command follows, as in CUDA_VISIBLE_DEVICES=0 accelerate launch ...
_COMMAND_FOLLOWS = re.compile(r"""^(?:"[^"]*"|'[^']*'|[^\s"'])*\s+.*_train_network""")
# Options whose value is a text, though it may look like a number.
_TEXTS = ("output_name", "output_dir", "network_weights", "dataset_config", "config_file", "sample_prompts")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?|%([A-Za-z_]\w*)%")


def read_options(path: Path) -> dict[str, Any]:
    """The options of a script or .toml file, by name; the contents of a data set's file as they are.

    MovaError in one line for a file that has none.
    """
    if not path.is_file():
        raise MovaError(f"--from-musubi: there is no file {path}")
    if path.suffix != ".toml":
        return _command(path)
    given = read_toml(path)
    if "datasets" in given:
        return given
    # Sections of an options file have no meaning.
    flat: dict[str, Any] = {}
    for name, value in given.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a .toml file. MovaError for what is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MovaError(f"{path} is not valid TOML: {error}") from error


def _command(path: Path) -> dict[str, Any]:
    """The options of the training command in a shell script; variables of the script are replaced."""
    text = re.sub(r"[\\^`]\s*\n", " ", path.read_text(encoding="utf-8"))
    variables: dict[str, str] = {}
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.lstrip().startswith(("#", "::", "rem ", "REM ")):
            continue
        assigned = _ASSIGNMENT.match(line)
        if assigned is not None and not _COMMAND_FOLLOWS.match(assigned[2]):
            variables[assigned[1]] = _replaced(_assigned(assigned[2]), variables, path)
            continue
        if "_train_network" not in line:
            continue
        try:
            words = shlex.split(_replaced(line, variables, path), comments=True)
        except ValueError as error:
            raise MovaError(f"{path}: the training command cannot be read: {error}") from None
        start = next((i for i, word in enumerate(words) if _SCRIPT.search(word)), None)
        if start is not None:
            rest = words[start + 1 :]
            end = next((i for i, word in enumerate(rest) if word in ("&&", ";", "|", "&", "||")), len(rest))
            found.append(rest[:end])
    if len(found) != 1:
        number = "no" if not found else "more than one"
        raise MovaError(f"{path}: holds {number} command of a *_train_network.py of musubi-tuner")
    return _options(found[0], path)


def _assigned(text: str) -> str:
    """The value of an assignment, without its quotes and a comment after it."""
    text = text.strip()
    quoted = _QUOTED.match(text)
    return re.sub(r"\s+#.*", "", text).strip("\"'") if quoted is None else quoted[2]


def _replaced(text: str, variables: dict[str, str], path: Path) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in variables:
            raise MovaError(f"{path}: the variable {name} is not set in it: write its value")
        return variables[name]

    return _VARIABLE.sub(value, text)


def _options(words: list[str], path: Path) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = [value] if equals else []
        elif name is None:
            raise MovaError(f"{path}: '{word}' stands before the first option of the training command")
        else:
            found[name].append(word)
    several = ("network_args", "optimizer_args", "lr_scheduler_args", "base_weights", "base_weights_multiplier")
    one = {
        key: " ".join(values) if values and key in _TEXTS else _value(values)
        for key, values in found.items()
        if key not in several
    }
    config = one.pop("config_file", None)
    under: dict[str, Any] = {}
    if config is not None:
        file = Path(config if str(config).endswith(".toml") else f"{config}.toml")
        beside = next((x for x in (file, path.parent / file) if x.is_file()), None)
        if beside is None:
            raise MovaError(f"{path}: config_file {config}: there is no such file")
        under = read_options(beside)
    return {**under, **one, **{key: values for key, values in found.items() if key in several}}


def _value(words: list[str]) -> Any:
    if not words:
        return True
    text = " ".join(words)
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
