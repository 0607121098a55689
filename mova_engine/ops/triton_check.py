"""Why the Triton kernels cannot serve, asked when operators are bound."""

from mova_engine.backend import Backend


def compiles_for(backend: Backend) -> str | None:
    """None where the installed Triton compiles for this device; the builds of several vendors share its name."""
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    target = GPUTarget(backend.name, 0, 32)
    if any(build.compiler.supports_target(target) for build in backends.values()):
        return None
    return (
        f"the installed triton compiles for {', '.join(sorted(backends))}, not for {backend.name}; "
        "install the build of the device's vendor in its place (for Ascend: triton-ascend)"
    )
