"""Kernels of the operator `gate_residual_norm`, one file per language."""
