"""Devices. Each is one file, found by name and imported only when asked for: `get_backend("npu")`.

A backend owns what differs between devices: availability, vendor imports, math-precision switches, peaks, memory, RNG.
Nothing outside this package names a device.
"""

import importlib

from mova_engine.backend.base import Backend, PrecisionReport
from mova_engine.errors import MovaError, suggest

NAMES = ("cpu", "cuda", "npu")

__all__ = ["NAMES", "Backend", "PrecisionReport", "default_backend", "describe_backend", "get_backend"]


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


def default_backend() -> Backend:
    """The first of npu, cuda, cpu that this machine can serve."""
    for name in ("npu", "cuda"):
        if _load(name).unavailable() is None:
            return get_backend(name)
    return get_backend("cpu")
