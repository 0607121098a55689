"""Which way is up: the eight ways in which a picture can be stored, for photos and videos alike.

They are numbered as EXIF does: 1 is upright; 2, 4, 5 and 7 are mirrored.
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
# What is left of a coefficient beside the greatest one, by rounding, counts as zero: a third of a degree.
_NOTHING = 0.006


def from_matrix(matrix: np.ndarray) -> int | None:
    """EXIF's number for a display matrix int [9] (row by row), whatever its scale; None when it is no such turn."""
    a, b, _, c, d = (float(value) for value in matrix[:5])
    greatest = max(abs(a), abs(b), abs(c), abs(d))
    signs = tuple(0 if abs(value) <= _NOTHING * greatest else 1 if value > 0 else -1 for value in (a, b, c, d))
    return _BY_MATRIX.get(signs)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """View of pixels [h, w, ...] as they are to be seen. Unknown numbers count as upright, as viewers have it."""
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
    """Whether stored rows are seen as columns."""
    return orientation in (5, 6, 7, 8)
