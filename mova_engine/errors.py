"""Errors that a user can act on, and how command lines report them."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class MovaError(Exception):
    """A problem with the user's input, files or machine: one line that says what is wrong and what to do."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known name nearest to `name`, or `""` when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def run_cli(main: Callable[[], int | None]) -> None:
    """Run `main` as a program: exit with its status; a MovaError becomes one line on stderr and status 2.

    Ctrl-C ends it with status 130; a reader that closes the pipe, quietly with status 0.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
        sys.exit(status)
    except MovaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read the output (head, less) has enough; what Python still holds back must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
