"""Runs work as tasks of Ray. They carry paths and numbers; films are read, and parts of the ledger written, by the
worker that has the task, so that RAW and OUT lie where all machines of the cluster see them under the same path.
"""

# Ray is optional and loaded late, so that its types are unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false

import pickle
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mova_engine.curation.engine_work import (
    DIED,
    ONE_THREAD,
    Attempts,
    EngineLimits,
    Outcome,
    Work,
    run_item,
)
from mova_engine.distributed.ray_cluster import ray_cluster
from mova_engine.distributed.stop_signals import StopRequest
from mova_engine.errors import require_package

# Tasks that are handed to Ray for each worker: the next one waits there while one runs.
_AHEAD = 2


def run_on_ray(
    work: Work,
    items: Iterable[Any],
    limits: EngineLimits,
    stop: StopRequest,
    *,
    address: str | None = None,
    takes: Mapping[str, Any],
) -> Iterator[Outcome]:
    """The outcome of each item, in the order in which they end. Items are taken from `items` as tasks end.

    stop: the `ended_at_once` that this lies in. address: of a running cluster; None: one is started on this machine,
    and ended afterwards. takes: what a task takes of its machine, {"num_cpus": 1}. Raises StopRunError where a worker
    says that the run cannot go on, and MovaError without Ray or cluster.
    """
    require_package("ray", "--engine ray", ", or --engine processes")
    with ray_cluster(stop, limits.workers, address) as ray:
        task = ray.remote(
            max_retries=0, max_calls=limits.units_each, runtime_env={"env_vars": dict(ONE_THREAD)}, **takes
        )(_run_task)
        pickled = ray.put(pickle.dumps(work))
        attempts, running = Attempts.of(items), {}
        while True:
            while len(running) < _AHEAD * limits.workers and (taken := attempts.take()) is not None:
                running[task.remote(pickled, taken[0], limits.stalled_s)] = taken
            if not running:
                return
            for reference in ray.wait(list(running))[0]:
                item, attempt = running.pop(reference)
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayError:
                    answer = ("failed", DIED)
                outcome = attempts.ended(item, attempt, answer)
                if outcome is not None:
                    yield outcome


def _run_task(work: bytes, item: Any, stalled_s: int) -> tuple[str, Any]:
    return run_item(work, item, lambda now: None, stalled_s)
