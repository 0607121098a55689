"""Kernels of the operator `merge_lse`, one file per language."""
