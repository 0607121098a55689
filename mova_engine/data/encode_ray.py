"""Encoding on Ray: each share of the clips is a task of a Ray cluster, which is run again where its worker dies.

Clips, model and cache lie where all machines of the cluster see them under the same path. What a share has encoded
before its worker died is in the cache, and is not encoded again.
"""

# Ray is optional and loaded late, so that its types are unknown.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import io
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from mova_engine.backend import describe_backend
from mova_engine.config.clip import ClipSettings
from mova_engine.data.clip_sources import Sources, as_sources
from mova_engine.data.encode_folder import encode_folder
from mova_engine.distributed.processes import read_launch
from mova_engine.distributed.stop_signals import STOPS, ended_at_once
from mova_engine.errors import MovaError, require_package

# How often a share is begun anew after its worker died.
RETRIES = 3
ANSWERS_WITHIN_S = 10.0
# Ray gives a node 30 s to start, which is little on a busy machine: how often it is tried.
STARTS = 3
# Seconds for Ray's own server to start: it takes this from the environment, and 30 without.
SERVER_STARTS_WITHIN_S = "120"


def encode_on_ray(
    data: Sources, clip: ClipSettings, options: dict[str, Any], shares: int, address: str | None = None
) -> int:
    """Encode the clips in `shares` tasks of Ray; returns 1 if some clips cannot be used, else 0.

    options: of `encode_folder`. address: of a running cluster, as `ray.init` takes it; None: Ray is started on this
    machine, and ended after the work. Raises MovaError if there is no Ray or no such cluster, if a share fails, and if
    its workers die again and again.
    """
    require_package("ray", "encoding on Ray", ", or --workers without --ray")
    if read_launch().world > 1:
        raise MovaError("--ray and torchrun both divide the clips: start one process")
    # Ray reports its use to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", SERVER_STARTS_WITHIN_S)
    import ray

    takes = describe_backend(options["device"]).ray_takes
    sources = [path.absolute() for path in as_sources(data)]
    given = {name: value.absolute() if isinstance(value, Path) else value for name, value in options.items()}
    with ended_at_once(lambda: "the same command goes on") as stop:
        _check_answers(address)
        try:
            _start(ray, address, shares)
            return _run(ray, takes, sources, clip, given, shares=shares)
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


def _start(ray: Any, address: str | None, shares: int) -> None:
    """Connect to a cluster, or start one of this machine alone."""
    options: dict[str, Any] = {"address": address}
    if address is None:
        # "local": else Ray joins a cluster that it finds. Its own count of CPUs would let fewer tasks run at once.
        options = {"address": "local", "include_dashboard": False, "num_cpus": max(shares, os.cpu_count() or 1)}
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


def _run(ray: Any, takes: Mapping[str, Any], *work: Any, shares: int) -> int:
    """takes: of its machine, a task. work: arguments of `encode_share` but the share."""
    task = ray.remote(max_retries=RETRIES, **takes)(encode_share)
    waiting = [task.remote(*work, f"{number}/{shares}") for number in range(1, shares + 1)]
    worst = 0
    while waiting:
        done, waiting = ray.wait(waiting)
        try:
            status, out, errors = ray.get(done[0])
        except ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            raise MovaError(
                f"a Ray worker that encodes was lost {RETRIES + 1} times ({first}): the same command goes on"
            ) from None
        sys.stdout.write(out)
        if status is None:
            raise MovaError(errors)
        sys.stderr.write(errors)
        worst = max(worst, status)
    return worst


def encode_share(
    sources: list[Path], clip: ClipSettings, options: dict[str, Any], share: str
) -> tuple[int | None, str, str]:
    """In a worker: `encode_folder` of one share. Returns its status, and what it said to stdout and stderr; of an error
    the status is None, and its message the last.
    """
    out, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            status = encode_folder(sources, clip, shard=share, **options)
    except MovaError as error:
        return None, out.getvalue(), str(error)
    return status, out.getvalue(), errors.getvalue()
