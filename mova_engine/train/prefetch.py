"""Micro-batches prepared in a thread of its own, ahead of the steps that take them.

The thread reads or encodes clips, draws noise and noise levels, and copies all of it to the device on a stream of its
own, from pinned memory. What a step takes is the same, bit for bit, as if it were prepared when the step asks for it.

Processes that share clips exchange them in that thread, in a group of their own, so that all of them must prepare
equally many. That many are PREPARED_AHEAD more than were taken, or all that the run needs: `settle` waits for it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch

from mova_engine.backend import Backend
from mova_engine.config.stages import PREPARED_AHEAD
from mova_engine.data.helper_signals import stop_signals_held
from mova_engine.data.loader import Loader
from mova_engine.files.byte_ranges import end_retries
from mova_engine.train.micro_batch import MicroBatch

# How long the end of a run waits for a clip that is being read: a complete one, and one that failed.
PATIENCE_S, ON_ERROR_S = 30.0, 1.0

Prepare = Callable[[int, Mapping[str, Any]], MicroBatch]


class Prefetch(Iterator[MicroBatch]):
    """A with-block in which micro-batches `first` to `last - 1` of a run are prepared; iterating takes them in order.

    The loader counts a batch when it is taken. An error of the thread is raised when its batch would be taken.
    """

    def __init__(
        self, loader: Loader, prepare: Prepare, first: int, last: int, backend: Backend, index: int = 0
    ) -> None:
        """prepare: makes a micro-batch, given its number. index: of the backend's device."""
        self._loader, self._prepare = loader, prepare
        self._backend, self._index, self._device = backend, index, backend.device(index)
        self._next, self._last = first, last
        self._ready: deque[tuple[MicroBatch, torch.Event | None]] = deque()
        self._error: BaseException | None = None
        # Whether the thread is to end; whether it prepares no more.
        self._closing = self._done = False
        self._changed = threading.Condition()
        self._stream = torch.Stream(self._device) if self._device.type != "cpu" else None

    def __enter__(self) -> "Prefetch":
        # Processes that read are started now: a fork beside a main thread that computes would copy the locks it holds.
        self._thread = threading.Thread(target=self._run, args=(self._loader.ahead(),), name="prefetch", daemon=True)
        # The thread inherits the mask: signals interrupt what the main thread waits for, and spare reading processes.
        with stop_signals_held():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._loader.rounds is not None:
            # Another process may still wait for what this one gives.
            self.settle()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end_retries()
        self._thread.join(PATIENCE_S if kind is None else ON_ERROR_S)

    def __next__(self) -> MicroBatch:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._done)
            if not self._ready:
                if self._error is not None:
                    raise self._error
                raise StopIteration
            found, copied = self._ready.popleft()
            self._loader.count()
            self._changed.notify_all()
        if copied is not None:
            stream = torch.accelerator.current_stream(self._device)
            stream.wait_event(copied)
            for x in (found.clips.audio, found.clips.text, found.clips.video, found.clips.image, *found.noise):
                if x is not None:
                    # Its memory is given back to the copying stream: not before this one has read it.
                    x.record_stream(stream)
        return found

    def settle(self) -> None:
        """Wait until as much is prepared as may be: until the next one is taken, the thread uses neither codecs nor
        the network.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._done or len(self._ready) == PREPARED_AHEAD)

    def _run(self, batches: Iterator[dict[str, Any]]) -> None:
        try:
            # A thread begins with device 0 as its own.
            self._backend.use_device(self._index)
            while self._next < self._last and self._room():
                # Encoding stays on the stream that the model computes on, as its memory is.
                micro, copied = self._copied(next(batches))
                with self._changed:
                    self._ready.append((micro, copied))
                    self._next += 1
                    self._changed.notify_all()
        except BaseException as error:  # it is the main thread's
            self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _room(self) -> bool:
        """Wait until one more may be prepared; whether it is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or len(self._ready) < PREPARED_AHEAD)
            return not self._closing

    def _copied(self, batch: Mapping[str, Any]) -> tuple[MicroBatch, torch.Event | None]:
        if self._stream is None:
            return self._prepare(self._next, batch), None
        with self._stream:
            return self._prepare(self._next, batch), self._stream.record_event()
