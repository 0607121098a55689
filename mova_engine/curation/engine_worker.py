"""A worker of the pool: the process that runs one unit after the other.

It starts with little imported, and without torch, which only some work needs: after each death another is started.
"""

import os
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from mova_engine.curation.engine_work import run_item
from mova_engine.data.helper_signals import NOT_FOR_HELPERS

# What a worker that is asked to end may take to store what it has measured.
ENDS_WITHIN_S = 5.0


def serve(socket: int, stalled_s: int) -> None:
    """A worker: run one item after the other, until the engine's end of the socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_HELPERS)
    engine = Connection(socket)
    items: queue.SimpleQueue[tuple[bytes, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(engine, items), daemon=True).start()
    while True:
        engine.send(run_item(*items.get(), _go_on, stalled_s))


_leaving = False


def _go_on(now: str) -> None:
    # The exception of the signal's handler may be lost where Python ignores exceptions, as in native code's callbacks.
    if _leaving:
        raise SystemExit(0)


def _leave(number: int, frame: object) -> None:
    global _leaving
    _leaving = True
    # What is measured is stored on the way out, which a second signal must not cut.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def _listen(engine: Connection, items: "queue.SimpleQueue[tuple[bytes, Any]]") -> None:
    """Take items; end the process where the engine has gone, in the midst of a unit too."""
    try:
        while True:
            items.put(engine.recv())
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ENDS_WITHIN_S)
        os._exit(1)
