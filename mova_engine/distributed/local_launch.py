"""`--processes N`: a command in several processes of this machine, by the launcher of torch.distributed."""

# Some of torch's functions are not fully typed.
# pyright: reportUnknownMemberType=false

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any
from uuid import uuid4

from mova_engine.errors import MovaError

# How long processes that were told to stop may take for a step and a checkpoint, in seconds.
_SHUTDOWN_S = 900


def must_start(count: int) -> bool:
    """Whether `count` processes are asked for and this is none of them. MovaError where a launcher has started other
    ones.
    """
    world = os.environ.get("WORLD_SIZE")
    if world is not None and count not in (1, int(world)):
        raise MovaError(f"--processes {count}, but this is one of {world} that a launcher started: leave it out")
    return count > 1 and world is None


def run_in_processes(module: str, words: Sequence[str], count: int) -> int:
    """Run `python -m module words...` in `count` processes, which find one another as torchrun's do; returns the status
    of the first that failed, or 0. A signal that stops this process is passed on.

    Each process computes with its share of the cores, unless OMP_NUM_THREADS says how many threads it has. Raises
    MovaError if a process is killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    # The processes say themselves what is wrong. Each of torch's loggers has a level of its own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # Releases of torch before 2.13 have no such setting.
    known = any(field.name == "shutdown_timeout" for field in fields(LaunchConfig))
    patience: dict[str, Any] = {"shutdown_timeout": _SHUTDOWN_S} if known else {}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
        **patience,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise MovaError(f"process {rank} of {count} was ended by {name}, and the others with it") from None
        return failure.exitcode
    except SignalException as stop:
        return 128 + stop.sigval
    return 0
