"""Dry runs: one step of a full-size model on fake tensors (shapes and dtypes without data), as one rank of many, on a
device that this machine need not have.

`fake_devices` and `fake_processes` patch torch. They therefore run in a separate process: see `child`.
"""
