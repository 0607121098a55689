"""Warnings about files that are read all the same: each fact of a file once, and not of every file of thousands."""

import logging
from collections import defaultdict
from pathlib import Path

log = logging.getLogger(__name__)

# Files of one kind that are named; a large data set may hold any number of them.
NAMED = 5

_told: dict[str, set[str]] = defaultdict(set)


def warn_once(path: str | Path, fact: str) -> None:
    """Log a warning `path: fact`, unless it was, or NAMED other files had the same fact."""
    files, name = _told[fact], str(path)
    if name in files or len(files) > NAMED:
        return
    files.add(name)
    if len(files) <= NAMED:
        log.warning("%s: %s", name, fact)
    else:
        log.warning("%s: %s; further files with this are not named", name, fact)
