"""The device of a world's processes: the CPU, or where the environment names one another."""

import os

import torch
from distributed.world import DEVICE

from mova_engine.backend import Backend, get_backend


def backend() -> Backend:
    """This process's."""
    return get_backend(os.environ.get(DEVICE, "cpu"))


def device() -> torch.device:
    """Where this process computes."""
    return backend().device(int(os.environ.get("LOCAL_RANK", "0")))
