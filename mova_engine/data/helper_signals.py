"""Stop signals and the processes that an engine process starts."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

NOT_FOR_HELPERS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Processes started within never see SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C.

    A terminal, Slurm or torchrun sends these to helpers too. Whether to stop, and when, is the trainer's to say: a
    helper that died of it would break off the step, or the checkpoint, that the trainer is about to finish.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_HELPERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
