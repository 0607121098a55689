"""The process that measures: it takes units of a suite one by one, and ends with the process that started it.

A unit that hangs, crashes or leaves the device unusable takes this process with it and nothing else. Units come as
lines of JSON on standard input; what became of them goes as such lines to the file descriptor that the command line
names.
"""

import json
import os
import queue
import sys
import threading
import time
from typing import Any

from mova_engine.bench.card.card_context import CardContext, LeftOut, first_line, make_context
from mova_engine.bench.card.card_suites import get_suite, part_named
from mova_engine.errors import MovaError
from mova_engine.ops import resolve

# A unit whose rows say that results are wrong.
WRONG = "wrong results: see its rows"


def measured(context: CardContext, part: str, unit: str) -> dict[str, Any]:
    """What is recorded of a unit: its rows, or the reason why there are none. "broken": this process should end."""
    entry: dict[str, Any] = {"commit": context.circumstances()["commit"]}
    start = time.monotonic()
    try:
        with context.backend.full_precision():
            rows = resolve(part_named(part).target)(context, unit)
        entry["rows"] = [row | {"mark": context.mark} for row in rows] if context.mark else rows
        if any(row.get("passed") is False for row in rows):
            entry["failed"] = WRONG
    except LeftOut as reason:
        entry["left_out"] = str(reason)
    except Exception as error:  # of a device that nobody here has: all its failures are worth knowing
        entry["failed"] = first_line(error)
        entry["broken"] = not isinstance(error, MovaError)
    if "failed" in entry and not context.works():
        entry["broken"] = True
    return entry | {"seconds": round(time.monotonic() - start, 2)}


def _commands() -> "queue.SimpleQueue[str]":
    """The lines of standard input, read by a thread that ends the process when there are no more."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        # The process that asked is gone; whatever runs here is for nobody.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def serve(suite: str, device: str | None, rehearse: bool, answers: int) -> None:
    """Measure what is asked, until standard input ends. answers: a file descriptor to write to."""
    lines = _commands()
    with os.fdopen(answers, "w", encoding="utf-8") as pipe:

        def say(**answer: Any) -> None:
            pipe.write(json.dumps(answer) + "\n")
            pipe.flush()

        try:
            context = make_context(get_suite(suite), device, rehearse)
        except MovaError as error:
            say(refused=str(error))
            return
        say(circumstances=context.circumstances(), mark=context.mark)
        while True:
            part, unit = json.loads(lines.get())
            entry = measured(context, part, unit)
            context.clear()
            say(entry=entry, circumstances=context.circumstances())


if __name__ == "__main__":
    name, device, rehearse, answers = sys.argv[1:]
    serve(name, device or None, rehearse == "rehearse", int(answers))
