"""Sizes and rates as they are typed: 12GB, 12GiB, 12000MB; 3GB/s."""

import re

from mova_engine.errors import MovaError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt])(i?)b", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
# Smaller and larger memory than any machine has for a model.
_LEAST, _MOST = 10**6, 10**14


def parse_bytes(text: str, option: str) -> int:
    """Bytes of a size such as 12GB (10^9 bytes each), 12GiB (2^30) or 12000MB. MovaError that names `option` for
    anything else, and for less than 1 MB or more than 100 TB.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise MovaError(f"{option}: '{text}' is no size: write a number and its unit, such as 12GB, 12GiB or 12000MB")
    number, unit, binary = found.groups()
    value = float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()]
    if not _LEAST <= value <= _MOST:
        raise MovaError(f"{option}: {text} is no machine's memory: it must lie between 1MB and 100TB")
    return round(value)


def parse_rate(text: str, option: str) -> int:
    """Bytes a second of a rate such as 3GB/s or 500MB/s. MovaError as `parse_bytes`."""
    size, slash, second = text.strip().partition("/")
    if (slash, second.strip()) != ("/", "s") or _SIZE.fullmatch(size.strip()) is None:
        raise MovaError(f"{option}: '{text}' is no rate: write bytes a second, such as 3GB/s or 500MB/s")
    return parse_bytes(size, option)


def check_bytes(**sizes: str | None) -> None:
    """MovaError for sizes, by the names of their options, that `parse_bytes` refuses; None is none."""
    for name, text in sizes.items():
        if text is not None:
            parse_bytes(text, f"--{name}")
