"""The headers of requests for files: which part is wanted, and whether the client has the file already."""

import re

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of what a Range header asks of `size` bytes; None for all.

    What is no single range of bytes is answered with all, as the standard allows (RFC 9110, 14.2). Raises ValueError
    for a range outside.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < begin:
            return None
    if begin >= size or begin >= end:
        raise ValueError(f"range {header} lies outside of {size} bytes")
    return begin, end


def names_tag(header: str | None, tag: str) -> bool:
    """Whether an If-None-Match header names the entity tag `tag`, quotes included (RFC 9110, 13.1.2)."""
    if header is None:
        return False
    return any(each.strip().removeprefix("W/") in ("*", tag) for each in header.split(","))
