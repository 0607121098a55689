"""Encoding on Ray: each share of the clips is a task of a Ray cluster, which is run again where its worker dies.

Clips, model and cache lie where all machines of the cluster see them under the same path. What a share has encoded
before its worker died is in the cache, and is not encoded again.
"""

# Ray is optional and loaded late, so that its types are unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import io
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from mova_engine.backend import describe_backend
from mova_engine.config.clip import ClipSettings
from mova_engine.data.clip_sources import Sources, as_sources
from mova_engine.data.encode_folder import encode_folder
from mova_engine.distributed.processes import read_launch
from mova_engine.distributed.ray_cluster import ray_cluster
from mova_engine.distributed.stop_signals import ended_at_once
from mova_engine.errors import MovaError, require_package

# How often a share is begun anew after its worker died.
RETRIES = 3


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
    takes = describe_backend(options["device"]).ray_takes
    sources = [path.absolute() for path in as_sources(data)]
    given = {name: value.absolute() if isinstance(value, Path) else value for name, value in options.items()}
    with ended_at_once(lambda: "the same command goes on") as stop, ray_cluster(stop, shares, address) as ray:
        return _run(ray, takes, sources, clip, given, shares=shares)


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
