"""Data sets that the engine generates."""
