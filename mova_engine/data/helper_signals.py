"""Keeps stop signals from the helper processes that an engine process starts."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

NOT_FOR_HELPERS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Processes started in this with-block ignore SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C: they inherit a mask that blocks
    them.

    A terminal, Slurm or torchrun sends these signals to helper processes too. A helper that ended would interrupt the
    step or the checkpoint that the trainer still wants to finish; the trainer ends its helpers itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_HELPERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
