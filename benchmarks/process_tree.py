"""CPU seconds and memory of this process with all that it has started."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_and_memory() -> tuple[float, int]:
    """CPU seconds, those of ended children included, and resident bytes of this process and all that it has started."""
    seconds, resident, pending = 0.0, 0, [os.getpid()]
    while pending:
        place = Path(f"/proc/{pending.pop()}")
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            resident += int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (place / "task").glob("*/children"):
                pending += map(int, task.read_text().split())
        except OSError:
            continue
        seconds += sum(map(int, fields[11:15])) / _TICKS
    return seconds, resident
