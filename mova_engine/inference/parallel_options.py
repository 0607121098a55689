"""Sampling in several processes: options, mesh, what cannot be."""

import argparse
import math
from dataclasses import dataclass, fields

from mova_engine.backend import Backend
from mova_engine.config.mesh import MeshShape, choose_mesh
from mova_engine.config.model import GUIDANCE_FORMS, MovaConfig
from mova_engine.diffusion.guidance import Guidance
from mova_engine.distributed.processes import Launch, Processes, start_processes
from mova_engine.errors import MovaError

PREFIX = "parallel."


@dataclass(frozen=True)
class ParallelOptions:
    """How the processes that torchrun starts share the work, by the trainer's names; cfg: guidance's evaluations of a
    step on so many of them.
    """

    context_parallel: int = 1
    ulysses: int | None = None
    cfg: int = 1
    shard: bool = False
    replicate: int = 1
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in ("context_parallel", "ulysses", "cfg", "replicate", "timeout"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < math.inf:
                raise MovaError(f"{PREFIX}{name} must be at least 1, got {value}")
        if self.replicate > 1 and not self.shard:
            raise MovaError("parallel.replicate concerns sharded weights: give --parallel.shard too")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--parallel.NAME` for each field of ParallelOptions."""
    group = parser.add_argument_group("several processes, started by torchrun")

    def add(name: str, **settings) -> None:
        group.add_argument(f"--{PREFIX}{name}", dest=PREFIX + name.replace("-", "_"), **settings)

    add(
        "context-parallel", type=int, default=1, metavar="N", help="processes that share each clip's tokens (default 1)"
    )
    add("ulysses", type=int, metavar="N", help="of these, how many exchange heads (default: as many as divide them)")
    add("cfg", type=int, default=1, metavar="N", help="processes that share guidance's evaluations (default 1)")
    add("shard", action="store_true", help="divide the weights among the processes; with --offload, on their hosts")
    add("replicate", type=int, default=1, metavar="N", help="with shard: whole copies of the weights (default 1)")
    add("timeout", type=float, default=600.0, metavar="S", help="seconds to wait for another process (default 600)")


def read_options(args: argparse.Namespace) -> ParallelOptions:
    """From parsed arguments; MovaError for values that cannot be."""
    return ParallelOptions(**{field.name: getattr(args, PREFIX + field.name) for field in fields(ParallelOptions)})


def choose_shape(
    options: ParallelOptions, launch: Launch, config: MovaConfig, guidance: Guidance, clips: int
) -> MeshShape:
    """The mesh of a run that makes so many clips. MovaError names what does not fit, with meshes that do."""
    if launch.world == 1:
        for name in ("context_parallel", "cfg"):
            if (size := getattr(options, name)) > 1:
                raise MovaError(
                    f"parallel.{name} is {size}, but this is one process: start so many with torchrun "
                    f"--nproc-per-node {size}, or leave the option out"
                )
        if options.shard:
            raise MovaError(
                "parallel.shard divides the weights among processes, but this is one: start several with torchrun "
                "--nproc-per-node 2, or leave the option out"
            )
    if options.cfg > guidance.evaluations:
        takes = {form: Guidance(form).evaluations for form in GUIDANCE_FORMS}
        others = "; ".join(f"--guidance {form} takes {n}" for form, n in takes.items() if n >= options.cfg)
        raise MovaError(
            f"parallel.cfg {options.cfg} shares out guidance's evaluations, and guidance '{guidance.form}' takes "
            f"{guidance.evaluations} a step: lower it" + (f" ({others})" if others else "")
        )
    shape = choose_mesh(
        launch.world,
        config.video.num_heads,
        context_parallel=options.context_parallel,
        ulysses=options.ulysses,
        dp_replicate=options.replicate,
        cfg=options.cfg,
        branches=guidance.evaluations,
    )
    if shape.data_parallel > clips and not options.shard:
        raise MovaError(
            f"{shape.data_parallel} groups of processes for {clips} clip{'s' if clips > 1 else ''}: share each clip "
            "with --parallel.context-parallel or --parallel.cfg, start fewer processes, or raise --count"
        )
    return shape


def join_processes(options: ParallelOptions, backend: Backend, launch: Launch, shape: MeshShape) -> Processes:
    """Meet the other processes."""
    return start_processes(backend, launch, shape, options.timeout, sampling=True)
