"""Clips that the engine makes itself."""
