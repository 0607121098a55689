"""The orientation of stored pictures, for photos and videos, by EXIF's numbers: 1 is upright; 2, 4, 5 and 7 are
mirrored.
"""

import numpy as np

UPRIGHT = 1

# Signs of a display matrix's a, b, c, d (ISO/IEC 14496-12, 6.2.2: x' = a x + c y, y' = b x + d y; y points down).
_BY_MATRIX = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
# A coefficient below this fraction of the largest one counts as zero (rounding; a third of a degree).
_NOTHING = 0.006


def from_matrix(matrix: np.ndarray) -> int | None:
    """EXIF's number for a display matrix int [9] (row by row) of any scale; None if it is no quarter turn."""
    a, b, _, c, d = (float(value) for value in matrix[:5])
    nothing = _NOTHING * max(abs(a), abs(b), abs(c), abs(d))
    return _BY_MATRIX.get((_sign(a, nothing), _sign(b, nothing), _sign(c, nothing), _sign(d, nothing)))


def _sign(value: float, nothing: float) -> int:
    """-1, 0 or 1; 0 for a value of at most `nothing` in size."""
    return 0 if abs(value) <= nothing else 1 if value > 0 else -1


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of pixels [h, w, ...] turned upright. Unknown numbers count as upright, as in viewers."""
    turned = {
        2: lambda: pixels[:, ::-1],
        3: lambda: pixels[::-1, ::-1],
        4: lambda: pixels[::-1],
        5: lambda: pixels.swapaxes(0, 1),
        6: lambda: np.rot90(pixels, -1),
        7: lambda: np.rot90(pixels, 2).swapaxes(0, 1),
        8: lambda: np.rot90(pixels, 1),
    }
    return turned.get(orientation, lambda: pixels)()


def swaps_sides(orientation: int) -> bool:
    """Whether the orientation exchanges rows and columns."""
    return orientation in (5, 6, 7, 8)
