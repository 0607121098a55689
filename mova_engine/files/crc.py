"""CRC-32 of bytes that follow one another, from the checksums of their parts, without the bytes.

A CRC is linear over GF(2): that of two parts is the first one's, put through as many zero bytes as the second part has,
xor the second one's (as in zlib's crc32_combine). Zero bytes are a 32 x 32 matrix, whose powers of two are squares.
"""

import numpy as np

# Of CRC-32 as zlib, PNG and Ethernet have it, lowest bit first.
_POLYNOMIAL = 0xEDB88320


def joined(ranges: np.ndarray, most: int) -> np.ndarray:
    """Join neighbours. ranges: int64 [n, 3], (offset, bytes, CRC-32) of ranges of one file, in any order; what is
    listed twice counts once.

    Returns int64 [m, 3] in order of offsets. Ranges that begin within the same `most` bytes of the file, and between
    which there is no gap, are one.
    """
    if not len(ranges):
        return ranges
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    ranges = ranges[np.r_[True, (ranges[1:] != ranges[:-1]).any(1)]]
    offsets, ends = ranges[:, 0], ranges[:, 0] + ranges[:, 1]
    begins = np.r_[True, (offsets[1:] != ends[:-1]) | (offsets[1:] // most != offsets[:-1] // most)]
    first = np.flatnonzero(begins)
    last = np.r_[first[1:], len(ranges)] - 1
    group_end = ends[last][np.cumsum(begins) - 1]
    moved = _through_zeros(ranges[:, 2].astype(np.uint32), group_end - ends)
    crcs = np.bitwise_xor.reduceat(moved, first).astype(np.int64)
    return np.stack([offsets[first], ends[last] - offsets[first], crcs], axis=1)


def _through_zeros(crcs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """crcs, uint32 [n], after `counts` zero bytes more, int64 [n]."""
    crcs, counts = crcs.copy(), counts.copy()
    # Of each bit of a CRC what it becomes after one zero bit; then after eight.
    images = np.array([_POLYNOMIAL, *(1 << bit for bit in range(31))], np.uint32)
    for _ in range(3):
        images = _mapped(_tables(images), images)
    while counts.any():
        tables = _tables(images)
        odd = np.flatnonzero(counts & 1)
        crcs[odd] = _mapped(tables, crcs[odd])
        counts >>= 1
        images = _mapped(tables, images)
    return crcs


def _tables(images: np.ndarray) -> np.ndarray:
    """uint32 [4, 256]: what each value of each byte becomes, from what each bit does, uint32 [32]."""
    tables = np.zeros((4, 256), np.uint32)
    for bit in range(8):
        has = np.flatnonzero(np.arange(256) >> bit & 1)
        tables[:, has] ^= images[bit::8, None]
    return tables


def _mapped(tables: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = tables[0][values & 0xFF]
    for byte in range(1, 4):
        found ^= tables[byte][values >> np.uint32(8 * byte) & 0xFF]
    return found
