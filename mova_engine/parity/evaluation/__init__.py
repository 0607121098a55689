"""Recorded cases of the reference's evaluation: every score from its input to its number."""
