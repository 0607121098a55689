"""Native CPU kernels: the C++ library `mova_kernels._C`, where it was built, and what the CPU can run."""

from mova_kernels.cpu.native import ISA, features, isa, isas, load, threaded, unavailable, use_isa

__all__ = ["ISA", "features", "isa", "isas", "load", "threaded", "unavailable", "use_isa"]
