"""Units of a suite that go wrong in every way that a unit can, for `test_card_runs.py`."""

import os
import time

from mova_engine.bench.card.card_context import LeftOut
from mova_engine.bench.card.card_suites import CardPart
from mova_engine.errors import MovaError

# Seconds are plans: a unit may take as long as `CardUnit.limit` says, which the test shortens.
ODD_PARTS = (
    CardPart(
        "doctor",
        "all that can go wrong",
        "odd_units:run",
        dict.fromkeys(("fine", "breaks", "refuses", "left out", "wrong", "crashes", "hangs", "after"), 0.1),
    ),
)


def run(context, unit):
    """A row with the process's number, or what the unit's name says."""
    if unit == "breaks":
        raise RuntimeError("the device is lost at 10.1.2.3\nand a stack")
    if unit == "refuses":
        raise MovaError("it cannot be done: do that")
    if unit == "left out":
        raise LeftOut("nothing to measure")
    if unit == "crashes":
        os.abort()
    if unit == "hangs":
        time.sleep(600)
    finding = {"check": "process", "level": "ok", "what": f"process {os.getpid()}", "do": ""}
    return [finding | {"process": os.getpid(), "passed": unit != "wrong"}]
