"""Devices. Each is one file, found by name and imported only when asked for: `get_backend("npu")`.

A backend owns what differs between devices: availability, vendor imports, math-precision switches, peaks, memory, RNG.
Nothing outside this package names a device.
"""

import importlib
import logging
import os

from mova_engine.backend.base import Backend, PrecisionReport
from mova_engine.backend.health import Surroundings
from mova_engine.errors import MovaError, suggest

NAMES = ("cpu", "cuda", "npu")

log = logging.getLogger(__name__)
# Devices whose fault this process has told.
_warned: set[str] = set()

__all__ = [
    "NAMES",
    "Backend",
    "PrecisionReport",
    "broken_devices",
    "default_backend",
    "describe_backend",
    "get_backend",
]


def _load(name: str) -> Backend:
    if name not in NAMES:
        raise MovaError(f"unknown device '{name}'.{suggest(name, NAMES)} Known: {', '.join(NAMES)}")
    return importlib.import_module(f"mova_engine.backend.{name}").BACKEND


def get_backend(name: str) -> Backend:
    """Return the backend of "cpu", "cuda" or "npu", ready for use.

    Raises MovaError with the reason and the remedy when this machine cannot serve it. There is no fallback.
    """
    backend = _load(name)
    reason = backend.unavailable()
    if reason:
        raise MovaError(f"device '{name}' cannot be used: {reason}")
    backend.prepare()
    return backend


def describe_backend(name: str) -> Backend:
    """Return the backend without requiring its hardware, for reports on what it would choose."""
    return _load(name)


def broken_devices(around: Surroundings) -> dict[str, str]:
    """The devices that this machine is meant to serve and cannot, best first: name to reason with remedy."""
    reasons = {}
    for name in reversed(NAMES):
        backend = _load(name)
        if backend.present(around) and (reason := backend.unavailable()):
            reasons[name] = reason
    return reasons


def default_backend() -> Backend:
    """The first of npu, cuda, cpu that this machine can serve.

    A better device that is installed or plugged in and cannot be used is named by a warning, once in a process: work
    that was meant for it would take a hundred times as long elsewhere.
    """
    chosen = next(name for name in reversed(NAMES) if _load(name).unavailable() is None)
    better = NAMES[NAMES.index(chosen) + 1 :]
    for name, reason in broken_devices(Surroundings()).items():
        if name in better and name not in _warned and os.environ.get("RANK", "0") == "0":
            log.warning(
                "device '%s' is there and cannot be used: %s. Going on with '%s' (--device %s chooses it without this "
                "warning)",
                name,
                reason,
                chosen,
                chosen,
            )
            _warned.add(name)
    return get_backend(chosen)
