"""Kernels of the operator `rms_norm_rope`, one file per language."""
