"""CRC-32 of bytes that follow one another, from the checksums of their parts, without the bytes.

A CRC is linear over GF(2): the CRC of two parts is that of the first part followed by as many zero bytes as the second
part has, xor that of the second part (as in zlib's crc32_combine). Appending zero bytes is a 32 x 32 matrix over GF(2);
the matrices for powers of two of bytes are computed by squaring.
"""

import numpy as np

# Of CRC-32 as zlib, PNG and Ethernet have it, lowest bit first.
_POLYNOMIAL = 0xEDB88320


def joined(ranges: np.ndarray, most: int) -> np.ndarray:
    """Join adjacent ranges. ranges: int64 [n, 3], (offset, bytes, CRC-32) of ranges of one file, in any order;
    duplicates are allowed.

    Returns int64 [m, 3], ascending by offset. Ranges are joined if there is no gap between them and they begin in the
    same block of `most` bytes of the file.
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
    """The CRCs after appending `counts` zero bytes, int64 [n], to data with `crcs`, uint32 [n]. Returns uint32 [n]."""
    crcs, counts = crcs.copy(), counts.copy()
    # The image of each bit of a CRC under one zero bit, then under eight.
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
    """The image of each value of each byte, uint32 [4, 256]. images: of each bit, uint32 [32]."""
    tables = np.zeros((4, 256), np.uint32)
    for bit in range(8):
        has = np.flatnonzero(np.arange(256) >> bit & 1)
        tables[:, has] ^= images[bit::8, None]
    return tables


def _mapped(tables: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The images of `values`, uint32 [n], under the map of `_tables`."""
    found = tables[0][values & 0xFF]
    for byte in range(1, 4):
        found ^= tables[byte][values >> np.uint32(8 * byte) & 0xFF]
    return found
