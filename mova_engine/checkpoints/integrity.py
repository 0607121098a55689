"""Checksums of a checkpoint's files: to find what a disk or a copy has spoilt, and to know what a run wrote itself.

    training/checksums.json     {"files": {"audio_dit/model.safetensors": [[offset, bytes, "crc32"], ...], ...}}

The ranges of a file cover it. Processes that save a checkpoint together add those that they wrote, of which neighbours
are joined: a thousand processes write millions. Processes that go on from a checkpoint share the reading.
"""

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mova_engine.errors import MovaError
from mova_engine.files.crc import joined
from mova_engine.files.folders import UNFINISHED
from mova_engine.files.tensors import read_json, tensors_of_file, write_json

CHECKSUMS = "training/checksums.json"
_TRAINING = re.compile("training/")
# Bytes of a range; where it was joined from several, about as many.
RANGE = 64 << 20
# Files up to this size are compared by content when a folder's owner is in question, larger ones by size.
SMALL = 1 << 20

# Offset, length and CRC-32 (8 hexadecimal digits) of a range of a file's bytes.
Range = tuple[int, int, str]
# By file: offset, length and CRC-32 of ranges, int64 [n, 3].
Ranges = dict[str, np.ndarray]


def write_checksums(folder: Path, known: Mapping[str, np.ndarray]) -> None:
    """Write the list for a complete checkpoint. known: ranges whose checksums are known (`Ranges`), in any order; the
    rest is read.
    """
    files: dict[str, list[Range]] = {}
    for name in _files(folder):
        size = (folder / name).stat().st_size
        ranges: list[Range] = []
        end = 0
        for offset, length, crc in joined(known[name], RANGE).tolist() if name in known else ():
            ranges += _read_ranges(folder / name, end, offset)
            ranges.append((offset, length, f"{crc:08x}"))
            end = offset + length
        files[name] = ranges + _read_ranges(folder / name, end, size)
    write_json(folder / CHECKSUMS, {"files": files})


def has_checksums(folder: Path) -> bool:
    """Whether the checkpoint has a list; those of earlier versions have none."""
    return (folder / CHECKSUMS).is_file()


def damage(folder: Path, part: int = 0, parts: int = 1, training: bool = True) -> str | None:
    """What is wrong with a checkpoint's files, in words; None where nothing is. Of `parts` processes that share the
    reading, each reads another part. training=False: the model's files alone.
    """
    try:
        if not has_checksums(folder):  # of an earlier version: headers tell a file that was cut off
            for path in sorted(folder.rglob("*.safetensors")):
                tensors_of_file(path)
            return None
        listed = {name: ranges for name, ranges in _listed(folder).items() if training or not _TRAINING.match(name)}
    except MovaError as error:
        return str(error)
    ranges = [(name, each) for name, every in listed.items() for each in every]
    try:
        for name, every in listed.items():
            size, expected = (folder / name).stat().st_size, sum(length for _, length, _ in every)
            if size != expected:
                return f"{name} has {size} bytes, {expected} were written"
        for name, (offset, length, crc) in ranges[part::parts]:
            if checksum(folder / name, offset, length) != crc:
                return f"{name} has other bytes than were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    return None


def is_own(folder: Path) -> bool:
    """Whether a folder holds a checkpoint as a run wrote it, and nothing else."""
    if not has_checksums(folder):
        return False
    try:
        listed = _listed(folder)
        if set(_files(folder)) != set(listed) or any(path.is_symlink() for path in folder.rglob("*")):
            return False
        for name, every in listed.items():
            size = (folder / name).stat().st_size
            if size != sum(length for _, length, _ in every):
                return False
            if size <= SMALL and any(checksum(folder / name, *each[:2]) != each[2] for each in every):
                return False
    except (OSError, MovaError):
        return False
    return True


def checksum(path: Path, offset: int, length: int) -> str:
    """CRC-32 of a range of a file's bytes. Raises OSError."""
    value = 0
    with open(path, "rb") as file:
        file.seek(offset)
        while length:
            data = file.read(min(length, 1 << 20))
            if not data:
                break
            value, length = zlib.crc32(data, value), length - len(data)
    return f"{value:08x}"


def _read_ranges(path: Path, begin: int, end: int) -> list[Range]:
    lengths = ((first, min(RANGE, end - first)) for first in range(begin, end, RANGE))
    return [(first, length, checksum(path, first, length)) for first, length in lengths]


def _files(folder: Path) -> Iterator[str]:
    """Names of all files but the list itself, in order."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in (CHECKSUMS, UNFINISHED):
            yield name


def _listed(folder: Path) -> dict[str, list[Range]]:
    content = read_json(folder / CHECKSUMS)
    try:
        files = {str(name): [(int(a), int(b), str(c)) for a, b, c in every] for name, every in content["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise MovaError(f"{CHECKSUMS} is no list of checksums") from None
    if any(os.path.isabs(name) or ".." in Path(name).parts for name in files):
        raise MovaError(f"{CHECKSUMS} names files outside its folder")
    return files
