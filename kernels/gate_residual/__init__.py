"""Kernels of the operator `gate_residual`, one file per language."""
