"""Verification of operator implementations: test cases, the noise model of allowed errors, the comparison.

Used by tests, parity, doctor and benchmarks, not by the product itself.
"""
