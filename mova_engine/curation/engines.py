"""The engine that a run uses, opened for all that it runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from mova_engine.backend import describe_backend
from mova_engine.config.curate import CurateConfig
from mova_engine.curation.engine_processes import ProcessPool
from mova_engine.curation.engine_work import EngineLimits, Outcome, Work
from mova_engine.distributed.stop_signals import StopRequest
from mova_engine.errors import require_package

# Work and its items to the outcomes, in the order in which they end.
Engine = Callable[[Work, Iterable[Any]], Iterator[Outcome]]


@contextmanager
def opened_engine(config: CurateConfig, stop: StopRequest) -> Iterator[Engine]:
    """A with-block with the engine of these settings. stop: the `ended_at_once` that it lies in.

    Raises MovaError where there is no Ray or no such cluster.
    """
    limits = engine_limits(config)
    if config.engine == "processes":
        with closing(ProcessPool(limits)) as pool:
            yield pool.run
        return
    require_package("ray", "--engine ray", ", or --engine processes")
    from mova_engine.curation.engine_ray import run_on_ray
    from mova_engine.distributed.ray_cluster import ray_cluster

    takes = describe_backend(config.device).ray_takes
    with ray_cluster(stop, limits.workers, config.engines.ray_address) as ray:
        yield lambda work, items: run_on_ray(ray, work, items, limits, takes)


def engine_limits(config: CurateConfig) -> EngineLimits:
    """The limits that the settings state."""
    settings = config.engines
    memory = None if settings.worker_memory is None else int(settings.worker_memory * 2**30)
    return EngineLimits(config.workers, memory, settings.worker_units, max(1, round(60 * settings.stalled_minutes)))
