"""Runs work as tasks of Ray. They carry paths and numbers; films are read, and parts of the ledger written, by the
worker that has the task, so that RAW and OUT lie where all machines of the cluster see them under the same path.
"""

# Ray is optional and loaded late, so that its types are unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import pickle
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mova_engine.curation.engine_work import DIED, Attempts, EngineLimits, Outcome, Work, run_item

# Tasks that are handed to Ray for each worker: the next one waits there while one runs.
_AHEAD = 2


def run_on_ray(
    ray: Any, work: Work, items: Iterable[Any], limits: EngineLimits, takes: Mapping[str, Any]
) -> Iterator[Outcome]:
    """The outcome of each item, in the order in which they end. Items are taken from `items` as tasks end.

    ray: of `ray_cluster`. takes: what a task takes of its machine, {"num_cpus": 1}. Raises StopRunError where a worker
    says that the run cannot go on.
    """
    # Ray has its workers compute by one thread, as the pool has.
    task = ray.remote(max_retries=0, max_calls=limits.units_each, **takes)(_run_task)
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
