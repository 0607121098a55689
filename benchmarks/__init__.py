"""Benchmarks of the engine: the baseline that it is measured against, and entry points for pytest-benchmark."""
