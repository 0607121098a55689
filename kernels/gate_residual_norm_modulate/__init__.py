"""Kernels of the operator `gate_residual_norm_modulate`, one file per language."""
