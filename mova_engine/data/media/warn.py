"""Warnings about files that are read all the same: each fact of a file once, and not of every file of thousands."""

import logging
from collections import defaultdict
from pathlib import Path

log = logging.getLogger(__name__)

# Files with the same fact that are named; a large data set may hold any number of them.
NAMED = 5
_ENOUGH = "; further files with this are not named"

_told: dict[str, set[str]] = defaultdict(set)


def warn(path: str | Path, fact: str) -> None:
    """Log the warning `path: fact`, once. `fact` is a phrase without a colon."""
    log.warning("%s: %s", path, fact)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a warning is the first about its file, and one of the first of its kind: a filter of the logger.

    Here rather than in `warn`, so that it also holds for records of other processes that this one logs again.
    """
    path, _, fact = record.getMessage().removesuffix(_ENOUGH).rpartition(": ")
    files = _told[fact]
    if path in files or len(files) > NAMED:
        return False
    files.add(path)
    record.msg, record.args = "%s: %s%s", (path, fact, _ENOUGH if len(files) > NAMED else "")
    return True


log.addFilter(_is_news)
