"""Runs that torchrun restarts with another number of processes (`--nnodes MIN:MAX`)."""

import os
from collections.abc import Callable

from mova_engine.errors import MovaError


def may_restart() -> bool:
    """Whether the launcher may start these processes again, perhaps with another number of them."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def worlds_that_fit(mesh: Callable[[int], object], world: int) -> str:
    """In words the nearest numbers of processes below and above `world`, up to twice as many, that the settings allow;
    "" where there are none. mesh: raises MovaError for a number that they do not.
    """

    def fits(number: int) -> bool:
        try:
            mesh(number)
        except MovaError:
            return False
        return True

    below = next((number for number in range(world - 1, 0, -1) if fits(number)), None)
    above = next((number for number in range(world + 1, 2 * world + 1) if fits(number)), None)
    found = [str(number) for number in (below, above) if number is not None]
    if not found:
        return ""
    numbers = " or ".join(found)
    return f". With these settings {numbers} processes fit: torchrun's --nnodes and --nproc-per-node say how many"


def other_step(saved: int | None, now: int) -> str | None:
    """A warning where a run goes on with other clips per step than its checkpoint's; None: with as many.

    saved: of the checkpoint; None: it does not say.
    """
    if saved in (None, now):
        return None
    return (
        f"a step takes {now} clips, before it took {saved}: other processes share them; --global-batch-size {saved} "
        "keeps their number"
    )
