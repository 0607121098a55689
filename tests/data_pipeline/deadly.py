"""Functions that do to the process which runs them what a bad file can do to a media library."""

import logging
import os
import signal
import time

import numpy as np

from mova_engine.data.media.reader_process import apart
from mova_engine.errors import MovaError


@apart
def good(path, *, size):
    logging.getLogger("reader").warning("%s is odd", path)
    return {"process": os.getpid(), "pictures": np.full(size, 7, np.uint8), "sound": np.arange(5.0), "none": None}


@apart
def refused(path):
    raise MovaError(f"{path}: too short")


@apart
def crashes(path):
    os.kill(os.getpid(), signal.SIGSEGV)


@apart
def aborts(path):
    os.abort()


@apart
def leaves(path):
    os._exit(3)


@apart
def spins(path):
    while True:
        pass


@apart
def sleeps(path):
    time.sleep(600)


@apart
def eats(path):
    return [np.ones(1 << 27) for _ in range(64)]


@apart
def has_a_bug(path):
    return {}["no such key"]
