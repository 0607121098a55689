"""Functions that do to the process which runs them what a bad file can do to a media library."""

import logging
import os
import signal
import time

import numpy as np

from mova_engine.data.media.reader_process import in_reader_process
from mova_engine.errors import MovaError


@in_reader_process
def good(path, *, size):
    logging.getLogger("reader").warning("%s is odd", path)
    return {"process": os.getpid(), "pictures": np.full(size, 7, np.uint8), "sound": np.arange(5.0), "none": None}


@in_reader_process
def refused(path):
    raise MovaError(f"{path}: too short")


@in_reader_process
def crashes(path):
    os.kill(os.getpid(), signal.SIGSEGV)


@in_reader_process
def aborts(path):
    os.abort()


@in_reader_process
def leaves(path):
    os._exit(3)


@in_reader_process
def spins(path):
    while True:
        pass


@in_reader_process
def sleeps(path):
    time.sleep(600)


@in_reader_process
def eats(path):
    return [np.ones(1 << 27) for _ in range(64)]


@in_reader_process
def has_a_bug(path):
    return {}["no such key"]
