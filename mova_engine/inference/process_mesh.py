"""Chooses and checks the process mesh of a sampling run."""

from mova_engine.backend import Backend
from mova_engine.config.mesh import MeshShape, choose_mesh
from mova_engine.config.model import GUIDANCE_FORMS, MovaConfig
from mova_engine.config.parallel import ParallelConfig
from mova_engine.diffusion.guidance import Guidance
from mova_engine.distributed.processes import Launch, Processes, start_processes
from mova_engine.errors import MovaError


def choose_shape(
    options: ParallelConfig, launch: Launch, config: MovaConfig, guidance: Guidance, clips: int
) -> MeshShape:
    """Return the mesh of a run that makes `clips` clips. Raises MovaError, with alternatives, if the options do not fit
    the number of processes, the model or the guidance.
    """
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
            f"parallel.cfg {options.cfg} divides the evaluations of guidance among processes, but guidance "
            f"'{guidance.form}' has {guidance.evaluations} a step: lower it" + (f" ({others})" if others else "")
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


def join_processes(options: ParallelConfig, backend: Backend, launch: Launch, shape: MeshShape) -> Processes:
    """Join the process group and build the mesh (`start_processes`) for sampling."""
    return start_processes(backend, launch, shape, options.timeout, sampling=True)
