"""How much memory this process may use: the machine's, or what its container or job is allowed of it.

Limits are those of Linux's control groups, of either version (the kernel's admin-guide/cgroup-v2 and
admin-guide/cgroup-v1/memory). A group's limit holds for all groups within it, so that every group is looked at from the
process's own one up to the one that is mounted.
"""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class _Version:
    """Where a version of control groups is mounted, and what its files of memory are called. cached: the rows of its
    statistics with the bytes of files that were read, which count as used and are given back.
    """

    mount: str
    limit: str
    used: str
    cached: tuple[str, str]


_V1 = _Version(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_V2 = _Version("sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file"))


def machine_memory(root: Path = Path("/")) -> tuple[int | None, int]:
    """(free, in all) bytes of memory that this process may use; free is None where the system does not tell, as outside
    of Linux. root: where its files are.
    """
    whole = resource.getpagesize() * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        whole, free = min(whole, _kilobytes(lines["MemTotal"])), _kilobytes(lines["MemAvailable"])
    except (OSError, ValueError, KeyError):
        return None, whole
    for limit, used in _limits(root):
        whole, free = min(whole, limit), min(free, max(0, limit - used))
    return free, whole


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) * 1024


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit of each group that has one, and the bytes that are used and would not be given back."""
    for version, folder in _groups(root):
        try:
            limit = int((folder / version.limit).read_text())
            used = int((folder / version.used).read_text())
            kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield limit, used - sum(int(kinds[name]) for name in version.cached)
        except (OSError, ValueError, KeyError):
            continue  # no limit ("max", or the outermost group), or no such controller


def _groups(root: Path) -> Iterator[tuple[_Version, Path]]:
    """Folders of the groups of memory that this process is in, its own first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, own = _V1 if controllers else _V2, PurePosixPath(path.strip("/"))
        # In a container the path may be the host's, of which only the mount is seen; ".." is outside of it.
        inside = () if ".." in own.parts else (own, *own.parents)
        for group in dict.fromkeys((*inside, PurePosixPath())):
            yield version, root / version.mount / group
