"""Errors that a user can act on, and how command lines report these, and anything else."""

import difflib
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

# What torch says, on the host and on devices; its error on the host has no type of its own.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_HOMES = re.compile(r"(?:/root|/(?:home|Users)/[^/\s:'\")]+)(?=[/\s:'\")]|$)")


class MovaError(Exception):
    """A problem with the user's input, files or machine: one line that says what is wrong and what to do."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known name nearest to `name`, or `""` when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def counted(count: int, noun: str) -> str:
    """A number and its noun: `counted(1, "clip")` is "1 clip", `counted(2, "clip")` is "2 clips"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def require_package(name: str, what: str, instead: str = "") -> None:
    """MovaError, before the work that ends in `what`, where the package that it needs is not installed. instead: how
    to do without.
    """
    if importlib.util.find_spec(name) is None:
        raise MovaError(f"{what} needs the package {name}, which is not installed: pip install {name}{instead}")


def redact(text: str) -> str:
    """`text` without paths, host names and addresses that tell who and where the user is: for reports to be sent."""
    places = {str(Path.cwd()): ".", sys.prefix: "<python>", sys.base_prefix: "<python>", str(Path.home()): "~"}
    for place, short in sorted(places.items(), key=lambda item: -len(item[0])):
        if len(place) > 1:
            text = re.sub(re.escape(place) + r"(?![\w.-])", short, text)
    text = _ADDRESS.sub("<address>", _HOMES.sub("~", text))
    host = socket.gethostname()
    if len(host) > 3 and host != "localhost":
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "<host>", text)
    return text


class WarningLines(logging.Handler):
    """Log records as single lines `warning: ...` through `write`, however long they are: log files are searched."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Line breaks in it become spaces."""
        self.write(f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}")


def show_warnings(write: Callable[[str], None]) -> None:
    """From now on tell warnings of the engine through `write`, instead of where they were told before."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, WarningLines)]:
        root.removeHandler(handler)
    root.addHandler(WarningLines(write))


def say(line: str) -> None:
    """Write a line to standard output at once, also where that is a pipe or a file: for commands that take long."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run_cli(main: Callable[[], int | None]) -> None:
    """Run `main` as a program: exit with its status; a MovaError becomes one line on stderr and status 2.

    So does memory that is not enough. Warnings go to stderr, a line each. Ctrl-C ends it with status 130; a reader that
    closes the pipe, quietly with 0.
    """
    show_warnings(lambda line: print(line, file=sys.stderr))
    try:
        status = main() or 0
        # The work is done: a signal while Python tidies up has nothing left to stop, and must not change the status.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        sys.stdout.flush()
        sys.exit(status)
    except MovaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        reason = (str(error).splitlines() or ["out of memory"])[0]
        print(f"error: not enough memory: {reason}; ask for less at a time (batch, frames, size)", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read the output (head, less) has enough; what Python still holds back must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
