"""Benches: which clips an evaluation asks for, what it asks of them, and how their numbers are summed up."""
