"""Kernels of the operator `layer_norm`, one file per language."""
