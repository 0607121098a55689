"""Why kernels of a device cannot serve, asked when operators are bound."""

import os

from mova_engine.backend import Backend
from mova_engine.errors import MovaError


def cpu(backend: Backend) -> str | None:
    """The reason from `mova_kernels.cpu`, which knows whether its library was built and loads.

    MovaError where the environment asks for kernels that cannot be had: nothing else serves in their place.
    """
    from mova_kernels.cpu import ISA, unavailable

    reason = unavailable()
    if reason and os.environ.get(ISA):
        raise MovaError(reason if ISA in reason else f"{ISA} is set, but {reason}")
    return reason


def cuda(backend: Backend) -> str | None:
    """The reason from `mova_kernels.cuda`, which knows whether its library was built and what GPU is there."""
    from mova_kernels.cuda import unavailable

    return unavailable()


def npu(backend: Backend) -> str | None:
    """The device's own reason, or what this version of its vendor's package lacks."""
    from mova_kernels.npu import unavailable

    return backend.unavailable() or unavailable()


def mindie(backend: Backend) -> str | None:
    """The device's own reason, or MindIE-SD's."""
    from mova_kernels.npu.mindie import unavailable

    return backend.unavailable() or unavailable()
