"""Measures of what models make, and of how fast they make it."""

# The formulation of each operator that implementations are compared with.
BASELINE = "benchmarks.reference_formulation:OPERATORS"
