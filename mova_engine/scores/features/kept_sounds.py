"""Converted sound of a clip that several scores read: each form is made once, within a bound of memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

# Bytes that are kept for the scores to come: several forms of minutes of sound.
MOST_KEPT = 64 << 20


class KeptSounds:
    """Arrays by what they are, read-only because they are shared; the least recently wanted ones are dropped.

    May be used from several threads. Another process starts with none.
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[object, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What `make` returned when it was first asked for."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                self._kept[key].flags.writeable = False
            self._kept.move_to_end(key)
            found = self._kept[key]
            while len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values()) > self._most:
                self._kept.popitem(last=False)
        return found

    def __reduce__(self) -> tuple[type["KeptSounds"], tuple[int]]:
        return KeptSounds, (self._most,)
