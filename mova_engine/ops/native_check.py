"""Why kernels of a device cannot serve, asked when operators are bound."""

from mova_engine.backend import Backend


def cpu(backend: Backend) -> str | None:
    """The reason from `mova_kernels.cpu`, which knows whether its library was built and loads."""
    from mova_kernels.cpu import unavailable

    return unavailable()


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
