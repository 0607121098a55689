"""Threads that wait for servers and do not outlive the program, which a pool's threads would: an interrupted one must
not wait for a server that says nothing, nor for the pause before the next try.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


def in_background(
    work: Callable[[Given], Found], todo: Iterable[tuple["Future[Found]", Given]], threads: int, name: str
) -> None:
    """Have so many threads give each future what `work` makes of the argument beside it, in their order.

    A future that was cancelled is passed over. `todo` is asked for the next pair when a thread is free.
    """
    waiting = iter(todo)
    lock = threading.Lock()

    def take_turns() -> None:
        while True:
            with lock:
                pair = next(waiting, None)
            if pair is None:
                return
            future, given = pair
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(given))
                except BaseException as error:
                    future.set_exception(error)

    for _ in range(threads):
        threading.Thread(target=take_turns, name=name, daemon=True).start()
