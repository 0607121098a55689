"""What the engines share: work that a worker opens once, its results, and how often a unit is tried."""

import hashlib
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from mova_engine.data.media.reader_process import read_here
from mova_engine.errors import MovaError

# How often a unit is tried before it is put aside with its reason.
ATTEMPTS = 3
# Why a unit failed whose worker died; the engines cannot tell more of it in the same words.
DIED = "the process that worked on it died (memory ran out, or the file ended it)"
STALLED = "no sign of life within the time limit"

# Called by a worker's function at each step, with what it does now.
Beat = Callable[[str], None]
# In a worker: an item to its result. Both are small: paths, numbers and text, never pictures or samples.
Function = Callable[[Any, Beat], Any]


class Work(Protocol):
    """What is sent to each worker, pickled: opening it there is what costs time, such as loading networks."""

    def opened(self) -> Function: ...


class StopRunError(MovaError):
    """Raised in a worker where the run cannot go on, whatever the unit."""


@dataclass(frozen=True)
class EngineLimits:
    """workers: units at once. worker_bytes: memory of a worker, None: its share of the machine's. units_each: units
    after which a worker is replaced. stalled_s: seconds without a sign of life after which it is ended.
    """

    workers: int = 2
    worker_bytes: int | None = None
    units_each: int = 200
    stalled_s: int = 3600


@dataclass(frozen=True)
class Outcome:
    """A result, or the reason why there is none after `attempts`."""

    item: Any
    result: Any = None
    reason: str = ""
    attempts: int = 1


@dataclass
class Attempts:
    """Items to do: first those that were never tried, then those that failed. Not more of them are taken from `items`
    than are asked for.
    """

    items: Iterator[Any]
    again: deque[tuple[Any, int]] = field(default_factory=deque[tuple[Any, int]])

    @classmethod
    def of(cls, items: Iterable[Any]) -> "Attempts":
        return cls(iter(items))

    def take(self) -> tuple[Any, int] | None:
        """The next item and the number of its attempt, from 1; None where there is none now."""
        for item in self.items:
            return item, 1
        return self.again.popleft() if self.again else None

    def ended(self, item: Any, attempt: int, answer: tuple[str, Any]) -> Outcome | None:
        """The outcome of an item, by what `run_item` answered; None: it is tried again. Raises StopRunError."""
        kind, said = answer
        if kind == "stop":
            raise StopRunError(said)
        if kind == "done":
            return Outcome(item, said, attempts=attempt)
        if attempt >= ATTEMPTS:
            return Outcome(item, reason=said, attempts=attempt)
        self.again.append((item, attempt + 1))
        return None


_opened: dict[str, Function] = {}


def run_item(work: bytes, item: Any, beat: Beat, stalled_s: int) -> tuple[str, Any]:
    """In a worker: open the pickled work, once, and run it on an item.

    Returns ("done", result), ("failed", reason), or ("stop", reason) where the run cannot go on. A worker that shows no
    sign of life for stalled_s seconds is ended by SIGALRM, even where native code does not return.
    """

    def alive(now: str) -> None:
        signal.alarm(stalled_s)
        beat(now)

    read_here()
    try:
        alive("opening")
        return "done", _function(work)(item, alive)
    except StopRunError as error:
        return "stop", str(error)
    except MovaError as error:
        return "failed", str(error)
    except Exception as error:  # whatever a file brings about must not end the run
        told = str(error).strip().splitlines() or [""]
        return "failed", f"{type(error).__name__}: {told[0]}"
    finally:
        signal.alarm(0)


def _function(work: bytes) -> Function:
    key = hashlib.sha256(work).hexdigest()
    if key not in _opened:
        _opened.clear()  # the work of an earlier run in this process
        _opened[key] = pickle.loads(work).opened()
    return _opened[key]
