"""Rows of a matrix in chunks, for work that needs wider numbers on the way than its result has."""

# Elements of a chunk: few beside a weight, many beside what a call costs.
_AT_ONCE = 1 << 22


def row_chunks(rows: int, width: int) -> list[slice]:
    """Slices that cover `rows` rows of `width` elements."""
    step = max(1, _AT_ONCE // max(1, width))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
