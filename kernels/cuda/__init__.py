"""CUDA C++ kernels: the library built from `csrc/cuda`, where it was asked for, and whether this machine can use it."""

from mova_kernels.cuda.library import load, unavailable

__all__ = ["load", "unavailable"]
