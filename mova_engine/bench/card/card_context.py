"""What the units of a suite share in a process: the device, what the planner knows of the card, the sizes."""

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch

from mova_engine.backend import NAMES, Backend, default_backend, describe_backend, get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.bench.bandwidth import copy_bandwidth
from mova_engine.bench.card.card_suites import SUITES, CardSuite
from mova_engine.config.model import MovaConfig, get_preset
from mova_engine.errors import MovaError, redact
from mova_engine.predict.hardware import Hardware, get_hardware

_MODEL, _SMALL_MODEL = "mova-360p", "nano"


class LeftOut(Exception):
    """A unit has nothing to measure here, for a reason that is no failure."""


def first_line(error: Exception) -> str:
    """What an error says, in a line without paths and names of machines."""
    line = (str(error).strip().splitlines() or [""])[0]
    return redact(line if isinstance(error, MovaError) else f"{type(error).__name__}: {line}")


@dataclass(frozen=True)
class CardContext:
    """hardware: the card as the planner knows it, with the memory that is free on this machine. mark: how rows are made
    that are no measurements; None: they are measurements. measure: calls what runs a step and returns its seconds, as
    often as it likes, and returns them all; None: as `bench.timing` does.
    """

    suite: CardSuite
    backend: Backend
    hardware: Hardware
    mark: str | None
    load: float
    dtype: torch.dtype = torch.bfloat16
    measure: Callable[[Callable[[], float]], Sequence[float]] | None = None

    @property
    def device(self) -> torch.device:
        return self.backend.device()

    @property
    def rehearsed(self) -> bool:
        return self.mark is not None

    @property
    def planned(self) -> MovaConfig:
        """The model that is to be measured: MOVA at 360p with one video expert, as a step uses one."""
        return replace(get_preset(_MODEL), experts=1)

    @property
    def config(self) -> MovaConfig:
        """The model that is measured; in a rehearsal a small one."""
        return replace(get_preset(_SMALL_MODEL), experts=1) if self.rehearsed else self.planned

    @cached_property
    def bandwidth(self) -> float:
        """Bytes per second of a copy, read plus written, measured once in this process."""
        return copy_bandwidth(self.backend)

    def circumstances(self) -> dict[str, Any]:
        """Where and by what is measured, now."""
        return circumstances(self.backend, self.load)

    def clear(self) -> None:
        """Give back what a unit held."""
        gc.collect()
        if self.backend.name != NAMES[0]:
            torch.accelerator.empty_cache()

    def works(self) -> bool:
        """Whether the device still computes: after some errors it never does again in the same process."""
        try:
            return float(torch.ones(2, device=self.device).sum()) == 2.0
        except Exception:  # whatever it says, it does not work
            return False


def make_context(suite: CardSuite, device: str | None, rehearse: bool) -> CardContext:
    """The context of a suite on a device; None: the best that is present.

    A CPU and an emulated device rehearse. Raises MovaError for a device that cannot be used, and where the card is one
    that another suite is for.
    """
    load = os.getloadavg()[0]
    backend = get_backend(device) if device else default_backend()
    hardware = get_hardware(suite.hardware)
    if backend.emulated():
        mark = f"rehearsed on the {backend.describe()}: not a measurement"
    elif rehearse or backend.name == NAMES[0]:
        mark = f"rehearsed on {backend.name}: not a measurement"
    else:
        mark = None
        _check_card(suite, backend, hardware)
        on_host = describe_backend(NAMES[0]).free_memory()[0]
        hardware = hardware.with_limits(vram=backend.free_memory()[1], ram=on_host)
    return CardContext(suite, backend, hardware, mark, load)


def _check_card(suite: CardSuite, backend: Backend, hardware: Hardware) -> None:
    """MovaError where the card is not of the suite's kind, or is one that another suite is for."""
    name = backend.describe()
    if backend.name != hardware.machine.kind:
        raise MovaError(f"suite {suite.name} is for {hardware.title}, here is {name}: give another --suite or --device")
    other = _suite_of(name)
    if other is not None and other != suite.name:
        raise MovaError(f"this card is a {name}: give --suite {other}")


@cache
def _suite_of(card: str) -> str | None:
    """The suite of the cards that call themselves so; None: there is none."""
    return next((name for name, suite in SUITES.items() if card in get_hardware(suite.hardware).names), None)
