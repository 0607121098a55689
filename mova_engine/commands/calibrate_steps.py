"""`mova calibrate`: measure the errors of a step cache, for `mova sample --cache`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mova_engine.config.calibration import CALIBRATE, CalibrateConfig
from mova_engine.errors import counted, run_cli

if TYPE_CHECKING:
    from mova_engine.distributed.stop_signals import StopRequest


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; returns 0. Raises MovaError for what cannot be used."""
    config = CALIBRATE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.distributed.stop_signals import ended_at_once

    with ended_at_once(lambda: "nothing was written") as stop:
        return _calibrate(config, stop)


def _calibrate(config: CalibrateConfig, stop: "StopRequest") -> int:
    from rich.console import Console
    from rich.progress import track

    from mova_engine.backend.circumstances import circumstances
    from mova_engine.distributed.processes import Processes, read_launch
    from mova_engine.errors import MovaError
    from mova_engine.files.results import check_result, write_result
    from mova_engine.inference.denoising import Step
    from mova_engine.inference.sampling_job import batch_of, read_job
    from mova_engine.inference.sampling_run import choose_memory_of, open_job
    from mova_engine.inference.step_cache import KIND, key_of
    from mova_engine.inference.step_calibration import calibrate

    launch = read_launch()
    if launch.world > 1:
        raise MovaError("mova calibrate is for one process: leave torchrun out")
    check_result(config.out, "--out")
    job = read_job(config, launch)
    batch = batch_of(job)
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    pipeline = open_job(job, Processes(), choose_memory_of(job, Processes(), batch), console)
    job.backend.use_threads(config.threads, job.model.video.dim)
    requests = [request for _, request in job.work]
    total = -(-len(requests) // batch) * job.settings.count
    steps = iter(track(range(total), "calibrating", console=console, transient=True))

    def stepped(_: Step) -> None:
        next(steps, None)
        stop.raise_if_asked()

    errors = calibrate(pipeline, requests, job.settings, config.longest, batch=batch, on_step=stepped)
    key = key_of(job.folder, job.clip, job.settings, pipeline.schedule, job.lora, config.attention)
    facts = {"key": key, "clips": len(requests), "longest": config.longest, "errors": errors}
    write_result(config.out, KIND, circumstances(job.backend), option="--out", **facts)
    pairs, clips = counted(len(errors), "pair"), counted(len(requests), "clip")
    sys.stdout.write(f"{config.out}: the errors of {pairs} of steps, by {clips}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
