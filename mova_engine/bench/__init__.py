"""Measures of what models make, and of how fast they make it."""
