"""The time of day of a process that is not moved when somebody sets the clock."""

import time


class StoreClock:
    """Seconds since 1970 as they were when the process began, counted on by the monotonic clock: an hour that the clock
    is set forward neither expires files nor makes a job older.
    """

    def __init__(self) -> None:
        self._day, self._count = time.time(), time.monotonic()

    def now(self) -> int:
        """Whole seconds since 1970."""
        return int(self._day + time.monotonic() - self._count)
