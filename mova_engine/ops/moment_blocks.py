"""Sizes of the blocks in which `ops.adamw_8bit` holds moments; also for the planner, which imports no torch."""

# Values of a row of a weight that share a scale, in float32.
BLOCK = 256
# Rows of fewer values are not worth a scale: their moments stay float32.
LEAST_ROW = 16
# What is added to the name of a moment for its blocks' scales.
SCALE = "_scale"


def moment_bytes(row: int) -> float:
    """Of one moment of a weight whose rows have so many values."""
    if row < LEAST_ROW:
        return 4.0
    blocks = -(-row // BLOCK)
    return 1 + 4 * blocks / row
