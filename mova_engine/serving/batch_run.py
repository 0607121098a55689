"""One batch of jobs in a worker: progress told, cancelled jobs dropped, previews and files written."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.files.atomic import write_atomic
from mova_engine.inference.clip_generator import FIRST_STEP
from mova_engine.inference.denoising import Step
from mova_engine.inference.extension import extended
from mova_engine.inference.pipeline import Pipeline
from mova_engine.inference.requests import Request
from mova_engine.serving.job_requests import JobRequest
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.job_times import JobProgress, JobTimes, StageSeconds
from mova_engine.serving.latent_preview import LatentPreview
from mova_engine.serving.served_clip import ServedClip, ServedFiles
from mova_engine.serving.served_manifest import ManifestMaker
from mova_engine.serving.store_errors import StoreRefusal
from mova_engine.serving.video_job import VideoJob

# Seconds between two reports to the store, and between two previews; previews of a clip at most.
_REPORT_S, _PREVIEW_S, _PREVIEWS = 0.4, 1.0, 12
_STEP_WORDS, _DECODING = "step ", "decoding: "


class NobodyWaitsError(Exception):
    """All jobs of the batch were cancelled, deleted or taken away."""


class BatchRun:
    """The jobs of a batch, and their requests. alive: called at each sign of work; what it raises ends the batch."""

    def __init__(
        self,
        store: JobStore,
        worker: str,
        pipeline: Pipeline,
        preview: LatentPreview,
        manifests: ManifestMaker,
        jobs: Sequence[VideoJob],
        requests: Sequence[JobRequest],
        alive: Callable[[], None],
    ) -> None:
        self._store, self._worker, self._pipeline, self._preview = store, worker, pipeline, preview
        self._manifests = manifests
        self._jobs, self._requests, self._alive = list(jobs), list(requests), alive
        self._wanted, self._completed = {job.id for job in jobs}, 0
        first = requests[0]
        self._count, self._windows = first.settings.count, first.windows
        self._times = JobTimes(store, jobs[0].model)
        self._tokens, self._evaluations = first.shape.video_tokens, first.settings.guidance.evaluations
        stages = self._times.stages(self._tokens, self._evaluations)
        self._progress = JobProgress(stages, self._count, self._windows, len(jobs))
        self._told, self._shown, self._stage, self._step = 0.0, time.monotonic(), "", 0
        self._marks: dict[str, float] = {}
        self._steps_s: list[float] = []
        self._last_step: Step | None = None
        self._small: list[np.ndarray] | None = [] if preview.learns and len(jobs) == self._windows == 1 else None
        self._sigmas = first.settings.noise_levels(pipeline.schedule).video_sigmas.tolist()

    def run(self) -> None:
        """Make the clips; each is completed as it is there. NobodyWaitsError if none is wanted any more."""
        first = self._requests[0]
        self._pipeline.clip = first.shape
        requests = [each.request for each in self._requests]
        self._marks["begin"] = time.perf_counter()

        def sinks(request: Request) -> ServedClip:
            return ServedClip(first.shape, first.frames, request, self._small)

        heard: dict[str, Any] = {"batch": len(requests), "on_step": self._on_step, "on_stage": self._on_stage}
        if first.extension is not None:
            clips = extended(
                self._pipeline, sinks, requests, first.settings, first.extension, source=first.source, **heard
            )
        else:
            clips = self._pipeline.generate_into(sinks, requests, first.settings, **heard)
        for job, made in zip(self._jobs, clips, strict=True):
            assert made is not None, "one process gets every clip"
            self._tell("finishing", force=True)
            if job.id in self._wanted:
                self._complete(job, made)
        self._note_times()

    def _complete(self, job: VideoJob, made: ServedFiles) -> None:
        """Write a clip's files whole, then say that they are there."""
        place = next(index for index, each in enumerate(self._jobs) if each.id == job.id)
        video, manifest = self._manifests.file(job, self._requests[place], made.video, len(self._jobs), place)
        files = {
            "video.mp4": video,
            "manifest.json": manifest,
            "thumb.webp": made.thumb,
            "sprite.webp": made.sprite,
            "waveform.json": made.waveform,
        }
        folder = self._store.files.folder_of(job.id)
        for name, data in files.items():
            write_atomic(folder / name, data)
        self._store.file(job.id, "preview.webp").unlink(missing_ok=True)
        facts = {"bytes": len(video), "solid_colour": made.solid, "steps": self._count}
        if self._store.finish(job.id, self._worker, facts):
            self._completed += 1
        self._wanted.discard(job.id)

    def _on_step(self, step: Step) -> None:
        now = time.perf_counter()
        self._steps_s.append(now - self._marks["step"])
        self._marks["step"] = now
        self._last_step, self._step = step, step.index + 1
        self._progress.stepped(self._step, self._steps_s[-1])
        self._tell("denoising", force=self._step == self._count)
        self._show(step)

    def _on_stage(self, stage: str) -> None:
        now = time.perf_counter()
        if stage == FIRST_STEP:
            self._marks["step"] = now
            self._marks["encoded"] = now
            self._progress.encoded()
            self._tell("denoising", force=True)
        elif stage.startswith(_STEP_WORDS):
            return
        elif stage.startswith("encoding"):
            if "encoded" in self._marks:
                self._progress.window_done()
            self._step = 0
            self._tell("encoding", force=True)
        elif stage.startswith("loading"):
            self._tell("loading", force=True)
        elif stage.startswith("decoding"):
            self._marks.setdefault("decoding", now)
            if stage.startswith(_DECODING):
                done, _, rest = stage.removeprefix(_DECODING).partition(" of ")
                self._progress.decoded(0.9 * int(done) / int(rest.split()[0]) / len(self._jobs))
            self._tell("decoding", force=stage == "decoding")
        else:
            self._tell(self._stage)

    def _tell(self, stage: str, force: bool = False) -> None:
        """Report to the store, not more often than it is read; and see whether somebody still waits."""
        self._alive()
        now = time.monotonic()
        try:
            if (force and stage != self._stage) or now - self._told >= _REPORT_S:
                self._told, self._stage = now, stage
                percent, eta = self._progress.percent, self._progress.eta_s
                told = sorted(self._wanted), self._worker, stage, self._step, self._count, percent, eta
                wanted = self._store.progress_of(*told)
            else:
                wanted = self._store.wanted_of(self._worker)
            self._drop(self._wanted - wanted)
        except StoreRefusal:
            # A full disk or a busy database: the clip goes on, and is reported when there is room again.
            return
        if not self._wanted and not self._completed:
            raise NobodyWaitsError

    def _drop(self, videos: set[str]) -> None:
        """Give up jobs that were cancelled; the others of the batch go on."""
        for video in videos:
            self._wanted.discard(video)
            clear_outputs(self._store, video)
            self._store.stopped(video, self._worker)

    def _show(self, step: Step) -> None:
        now, every = time.monotonic(), max(1, self._count // _PREVIEWS)
        if step.index % every or now - self._shown < _PREVIEW_S or step.index + 1 >= self._count:
            return
        self._shown = now
        sigma = self._sigmas[step.index + 1]
        for index, job in enumerate(self._jobs):
            if job.id not in self._wanted:
                continue
            picture = self._preview.picture(step.state.video[index], step.velocity.video[index], sigma)
            folder = self._store.files.folder_of(job.id)
            if picture is not None and folder.is_dir():
                write_atomic(folder / "preview.webp", picture, sync=False)

    def _note_times(self) -> None:
        """Keep what the stages took: per clip, without the first step, which may compile and read weights."""
        now, clips = time.perf_counter(), len(self._jobs)
        if self._windows > 1 or "encoded" not in self._marks or self._completed < clips:
            return
        steps = sorted(self._steps_s[1:] or self._steps_s)
        encode = self._marks["encoded"] - self._marks["begin"]
        decode = now - self._marks.get("decoding", now)
        found = StageSeconds(encode / clips, steps[len(steps) // 2] / clips, decode / clips)
        self._times.note(self._tokens, self._evaluations, found)
        if self._small and self._last_step is not None:
            self._preview.learn(self._last_step.state.video[0], self._small)


def clear_outputs(store: JobStore, video: str) -> None:
    """Remove what a job that is given up has written beside its inputs."""
    folder: Path = store.files.folder_of(video)
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    store.file(video, "preview.webp").unlink(missing_ok=True)
