"""Ray, joined or started for a with-block: one place for what it takes to start it, to stop it and to interrupt it."""

# Ray is optional and loaded late, so that its types are unknown.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mova_engine.distributed.stop_signals import STOPS, StopRequest
from mova_engine.errors import MovaError

ANSWERS_WITHIN_S = 10.0
# Ray gives a node 30 s to start, which is little on a busy machine: how often it is tried.
STARTS = 3
# Seconds for Ray's own server to start: it takes this from the environment, and 30 without.
SERVER_STARTS_WITHIN_S = "120"


@contextmanager
def ray_cluster(stop: StopRequest, cpus: int, address: str | None = None) -> Iterator[Any]:
    """A with-block with the module `ray`, connected to a cluster.

    stop: the `ended_at_once` that the block lies in. address: of a running cluster, as `ray.init` takes it; None: Ray
    is started on this machine, with `cpus` CPUs at least, and ended after the block. Raises MovaError if there is no
    such cluster; whoever calls this has made sure that the package is there.
    """
    # Ray reports its use to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", SERVER_STARTS_WITHIN_S)
    import ray

    _check_answers(address)
    try:
        _start(ray, address, cpus)
        yield ray
    except SystemExit:
        # What the signal's handler raises within Ray's functions comes out of them as a SystemExit of their own.
        stop.raise_if_asked()
        raise
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """MovaError where nobody listens at an address: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise MovaError(f"no Ray at {address}: {error}") from None


def _start(ray: Any, address: str | None, cpus: int) -> None:
    """Connect to a cluster, or start one of this machine alone."""
    options: dict[str, Any] = {"address": address}
    if address is None:
        # "local": else Ray joins a cluster that it finds. Its own count of CPUs would let fewer tasks run at once.
        options = {"address": "local", "include_dashboard": False, "num_cpus": max(cpus, os.cpu_count() or 1)}
    for left in reversed(range(STARTS)):
        try:
            with _kept_handlers():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception as error:  # Ray raises that very class where a node does not start
            ray.shutdown()
            if address is not None or not left:
                place = address or "this machine"
                raise MovaError(f"no Ray at {place}: {str(error).strip().splitlines()[0]}") from None


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """A with-block after which stop signals are handled as before: Ray replaces the handler of SIGTERM by one that
    aborts the process.
    """
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        # Other threads may not set handlers, and get no signals.
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
