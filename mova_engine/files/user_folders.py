"""Folders of the user's own, by the XDG base directory specification: what is kept between runs, and what can go."""

import os
from pathlib import Path

_NAME = "mova_engine"


def config_folder() -> Path:
    """Where the user's settings and keys are; it need not exist."""
    return _folder("XDG_CONFIG_HOME", ".config")


def cache_folder() -> Path:
    """Where that is kept which can be made again; it need not exist."""
    return _folder("XDG_CACHE_HOME", ".cache")


def _folder(variable: str, default: str) -> Path:
    # The specification has relative paths ignored.
    named = os.environ.get(variable, "")
    return (Path(named) if os.path.isabs(named) else Path.home() / default) / _NAME
