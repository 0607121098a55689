"""Converts training recipes to jobs, and checks whether they run without changes."""

from dataclasses import replace

from mova_engine.config.buckets import largest
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import load_config
from mova_engine.config.train import TrainConfig
from mova_engine.errors import MovaError, counted
from mova_engine.plan import report
from mova_engine.plan.command_line import memory_words
from mova_engine.predict.hardware import Hardware
from mova_engine.predict.job import IMPLEMENTATIONS, Job, Layout, PlannedRun, layout_of, training_job
from mova_engine.predict.search import plan, smallest_change


def job_of(recipe: str) -> Job:
    """The job of a recipe. Raises MovaError if it starts from a folder, whose sizes a plan does not read."""
    config = load_config(recipe)
    if config.model.checkpoint is not None:
        raise MovaError(f"recipe {recipe} starts from a folder; name the model and settings instead")
    model = get_preset(config.model.preset)
    clip = largest(config.buckets.shapes(config.clip.over(model.clip)))
    job = training_job(config, replace(model, clip=clip))
    # A plan is for micro-batches of one clip, unless it is told otherwise.
    return replace(job, clips=job.clips or job.batch, batch=1)


def layout_as_set(config: TrainConfig, heads: int, devices: int) -> Layout:
    """The layout of the mesh that the trainer makes of `devices` processes. Raises MovaError as `TrainConfig.mesh`."""
    return layout_of(config.mesh(heads, devices), config.parallel.shard)


def recipe_as_it_stands(recipe: str, devices: int, hardware: Hardware) -> str:
    """One line: whether `recipe` runs on these devices without further options, and if not, the smallest change."""
    config, job, head = load_config(recipe), job_of(recipe), f"{recipe} as it stands"
    try:
        layout = layout_as_set(config, job.model.video.num_heads, devices)
    except MovaError as error:
        return f"{head} does not run on {counted(devices, 'device')}: {error}"
    base = config.memory
    clips = config.global_batch_size or config.loader.batch * layout.data_parallel
    job = replace(job, batch=config.loader.batch, clips=clips)
    found = plan(PlannedRun(job, layout, base), hardware)
    size = f"{report.gb(found.memory.total)} GB of {report.gb(hardware.budget)}"
    if found.fits:
        step = f"{report.seconds(found.prediction.seconds)} s for {counted(found.prediction.clips, 'clip')}"
        return f"{head} fits: {size}, a step takes {step} ({layout})"
    change = _change(config, job, devices, hardware, base) or "no option makes it fit on this mesh"
    return f"{head} does not fit: {size} ({layout}); {change}"


def _change(config: TrainConfig, job: Job, devices: int, hardware: Hardware, base: MemoryConfig) -> str | None:
    """The fewest options that make a recipe fit: micro-batches of one clip, weights divided among the same devices, or
    another policy. None if these do not suffice.
    """
    candidates = []
    for batch in {job.batch, 1}:
        smaller = ["--loader.batch", "1"]
        if config.global_batch_size is None:
            smaller += ["--global-batch-size", str(job.clips)]
        for shard in {config.parallel.shard, devices > 1}:
            settings = replace(config, parallel=replace(config.parallel, shard=shard))
            layout = layout_as_set(settings, job.model.video.num_heads, devices)
            one = replace(job, batch=batch)
            least = smallest_change(one, layout, hardware, IMPLEMENTATIONS["ours"], base=base)
            if least is not None:
                options = smaller if batch != job.batch else []
                options = options + ["--parallel.shard"] * (shard != config.parallel.shard)
                number = len(least.run.policy.changes(base)) + (batch != job.batch) + (shard != config.parallel.shard)
                candidates.append((number, least, [*options, *memory_words(least.run.policy, base)]))
    if not candidates:
        return None
    _, least, options = min(candidates, key=lambda found: (found[0], found[1].seconds_per_clip))
    return f"smallest change that fits: {' '.join(options)} ({report.gb(least.memory.total)} GB)"
