"""Kernels of the operator `quantize_rows`, one file per language."""
