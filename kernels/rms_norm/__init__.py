"""Kernels of the operator `rms_norm`, one file per language."""
