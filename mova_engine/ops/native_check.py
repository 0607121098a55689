"""Why the native kernels cannot serve, asked when operators are bound."""

from mova_engine.backend import Backend


def cpu(backend: Backend) -> str | None:
    """The reason from `mova_kernels.cpu`, which knows whether its library was built and loads."""
    from mova_kernels.cpu import unavailable

    return unavailable()


def cuda(backend: Backend) -> str | None:
    """The reason from `mova_kernels.cuda`, which knows whether its library was built and what GPU is there."""
    from mova_kernels.cuda import unavailable

    return unavailable()
