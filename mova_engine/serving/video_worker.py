"""A worker process: it claims jobs and makes their clips, with a pipeline that stays open.

`python -m mova_engine.serving.video_worker` reads its settings from standard input (`worker_settings`).
"""

import io
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from mova_engine.backend import Backend, default_backend, get_backend
from mova_engine.checkpoints.locate import find_model, open_model
from mova_engine.config.clip import ClipSettings
from mova_engine.config.memory import MemoryConfig, memory_of_word
from mova_engine.data.media.signer import Signer
from mova_engine.diffusion.guidance import Guidance
from mova_engine.errors import MovaError, show_warnings
from mova_engine.inference.clip_generator import MOST_CLIPS, default_batch
from mova_engine.inference.pipeline import Pipeline
from mova_engine.inference.prompts.prompt_enhancer import PromptEnhancer
from mova_engine.inference.prompts.text_limit import text_limit
from mova_engine.inference.requests import read_frame
from mova_engine.inference.sampling_memory import longest_that_fits
from mova_engine.ops import DTYPES
from mova_engine.serving.batch_run import BatchRun, NobodyWaitsError, clear_outputs
from mova_engine.serving.job_requests import JobRequest, read_request
from mova_engine.serving.job_times import JobTimes
from mova_engine.serving.latent_preview import LatentPreview
from mova_engine.serving.served_manifest import ManifestMaker
from mova_engine.serving.served_room import ServedRoom
from mova_engine.serving.store_errors import StoreRefusal
from mova_engine.serving.video_job import BAD_REQUEST, DISK_FULL, INTERNAL, OUT_OF_MEMORY, VideoJob
from mova_engine.serving.worker_settings import SIGNING, STOP, WorkerSettings

# Seconds between looks at the queue.
_LOOK_S = 0.2
# Exit codes: ended as asked; taken for dead, so that a fresh process must take over; settings that cannot be used.
ENDED, LOST, UNUSABLE = 0, 3, 4
_NO_MEMORY = "not enough memory for this clip: ask for fewer frames or a smaller size"
log = logging.getLogger(__name__)
Made = TypeVar("Made")


class StoppingError(Exception):
    """The worker was asked to end, or was taken for dead."""


class VideoWorker:
    """Makes the clips of a store's jobs, until `stop` is set."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings, self.name, self.stop = settings, settings.name, threading.Event()
        self.lost = threading.Event()
        self.store = settings.open_store()
        self._sign_of_life = time.monotonic()
        self._folder = find_model(settings.checkpoint, log.warning)
        backend = get_backend(settings.device) if settings.device else default_backend()
        self.pipeline = self._opened(backend)
        signer = None
        if settings.sign:
            own = self.store.files.folder / SIGNING
            signer = Signer.open(own, settings.provenance.certificate, settings.provenance.key)
        self._manifests = ManifestMaker(self._folder, signer, self.store.files, backend, settings)
        self._preview = LatentPreview(self.store, settings.model, self.pipeline)
        self._enhancer = None
        if settings.enhance.backend != "none":
            limit = text_limit(self._folder, self.pipeline.mova.config)
            self._enhancer = PromptEnhancer(settings.enhance, limit, backend)

    def _opened(self, backend: Backend) -> Pipeline:
        settings = self.settings
        dtype = None if settings.dtype is None else DTYPES[settings.dtype]
        found = Pipeline.from_pretrained(
            settings.checkpoint,
            settings.device,
            dtype,
            clip=self._longest_clip(backend, dtype),
            memory=settings.memory,
            vram=settings.vram,
            ram=settings.ram,
        )
        backend.use_threads(settings.threads, found.mova.config.video.dim)
        if found.chosen is not None and (seconds := found.chosen.clip_step_seconds) is not None:
            job = found.chosen.plan.run.job
            JobTimes(self.store, settings.model).plan(job.model.clip.video_tokens, job.evaluations, seconds)
        for name, path in settings.lora:
            assert found.adapters is not None, "from_pretrained gives adapters"
            found.adapters.add(name, path)
        return found

    def _longest_clip(self, backend: Backend, dtype: torch.dtype | None) -> ClipSettings:
        """The model's clip, or the longest shorter one that fits the device, which the server is told of."""
        settings = self.settings
        # What is to be said of the folder is said when the pipeline is opened.
        folder, model = open_model(Path(settings.checkpoint), ClipSettings(), lambda _: None)
        longest = longest_that_fits(
            memory_of_word(settings.memory) if settings.memory else MemoryConfig(),
            folder,
            model,
            backend,
            dtype=dtype,
            evaluations=Guidance(model.sampling.guidance).evaluations,
            batch=lambda clip: default_batch(clip, MOST_CLIPS),
            vram=settings.vram,
            ram=settings.ram,
        )
        ServedRoom(self.store, settings.model).note(socket.gethostname(), model.clip, longest)
        if longest == model.clip:
            return ClipSettings()
        log.warning(
            "clips of %dx%d have at most %d frames, not %d: the memory of this device does not hold more",
            longest.width, longest.height, longest.frames, model.clip.frames,
        )  # fmt: skip
        return ClipSettings(frames=longest.frames)

    def run(self) -> None:
        """Work until asked to stop; jobs that are not done go back to the queue."""
        self.store.register(self.name, socket.gethostname(), [self.settings.model])
        threading.Thread(target=self._beat, daemon=True).start()
        try:
            while not self.stop.is_set() and not self.lost.is_set():
                self._alive_or_raise()
                if not self._work_once():
                    self.stop.wait(_LOOK_S)
        except StoppingError:
            pass
        finally:
            if not self.lost.is_set():
                self._until_it_works(lambda: self.store.leave(self.name))

    def _beat(self) -> None:
        """Heartbeats, as long as there are signs of work."""
        every = max(0.05, self.settings.limits.lease_s / 6)
        while not self.stop.wait(every):
            if time.monotonic() - self._sign_of_life > self.settings.hang_s:
                log.warning("worker %s: no sign of work for %g s; it ends", self.name, self.settings.hang_s)
                os._exit(LOST)
            try:
                if not self.store.beat(self.name):
                    self.lost.set()
                    return
            except StoreRefusal:
                continue

    def _alive_or_raise(self) -> None:
        self._sign_of_life = time.monotonic()
        if self.stop.is_set() or self.lost.is_set():
            raise StoppingError

    def _work_once(self) -> bool:
        """Make the next batch. False: nothing waits."""
        try:
            job = self.store.claim(self.name, [self.settings.model])
        except StoreRefusal as error:
            log.warning("%s", error)
            return False
        if job is None:
            return False
        jobs = [job]
        try:
            job = self._enhanced(job)
            jobs = [job]
            request = self._read(job)
            if request is None:
                return True
            most = self.settings.batch or default_batch(request.shape, MOST_CLIPS)
            jobs += self.store.claim_alike(self.name, job, most - 1)
            read = [(each, self._read(each)) for each in jobs[1:]]
            ready = [(job, request), *((each, found) for each, found in read if found is not None)]
            parts = [each for each, _ in ready], [found for _, found in ready]
            tools = self.store, self.name, self.pipeline, self._preview, self._manifests
            BatchRun(*tools, *parts, self._alive_or_raise).run()
        except NobodyWaitsError:
            pass
        except StoppingError:
            raise
        except Exception as error:
            code, message = self._reason(error)
            for each in jobs:
                self._fail(each, code, message)
        return True

    def _enhanced(self, job: VideoJob) -> VideoJob:
        """The job with its prompt rewritten, where it asks for that."""
        settings = job.settings
        if self._enhancer is None or settings.enhance == "none" or settings.enhanced_prompt is not None:
            return job
        self.store.progress(job.id, self.name, "enhancing", 0, job.steps, 0, job.predicted_s)
        frame = None
        if settings.first_frame:
            size = {"height": settings.height, "width": settings.width}
            frame = read_frame(
                str(self.store.file(job.id, "first.png")), replace(self.pipeline.mova.config.clip, **size)
            )
        made = self._while_wanted(job, partial(self._enhancer.enhance, settings.prompt, frame))
        facts = {} if made.warning is None else {"prompt_warning": made.warning}
        return self.store.rewritten(job, self.name, made.prompt if made.used == "enhanced" else None, facts)

    def _while_wanted(self, job: VideoJob, act: Callable[[], Made]) -> Made:
        """What `act` gives, which says nothing meanwhile. It is given up where the job is cancelled or the worker is to
        end, and then goes on in its thread, for nobody, until it is done.
        """
        outcome = list[Made | Exception]()

        def run() -> None:
            try:
                outcome.append(act())
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            self._alive_or_raise()
            with suppress(StoreRefusal):
                if job.id not in self.store.wanted_of(self.name):
                    clear_outputs(self.store, job.id)
                    self.store.stopped(job.id, self.name)
                    raise NobodyWaitsError
            thread.join(_LOOK_S)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def _read(self, job: VideoJob) -> JobRequest | None:
        """A job's request; None: it cannot be made, which was said."""
        self.store.progress(job.id, self.name, "loading", 0, job.steps, 0, job.predicted_s)

        def file(name: str) -> Path:
            return self.store.file(job.id, name)

        try:
            # Where its files go; a job that was deleted meanwhile is swept.
            self.store.files.folder_of(job.id).mkdir(exist_ok=True)
            # What a worker that died left half written.
            clear_outputs(self.store, job.id)
            checkpoint = Path(self.settings.checkpoint)
            return read_request(job.settings, file, self.pipeline, checkpoint, self._folder)
        except Exception as error:
            self._fail(job, *self._reason(error))
            return None

    def _fail(self, job: VideoJob, code: str, message: str) -> None:
        def told() -> None:
            clear_outputs(self.store, job.id)
            self.store.fail(job.id, self.name, code, message)

        self._until_it_works(told)

    def _until_it_works(self, act: Callable[[], object]) -> None:
        """Repeat what a full disk or a busy database refuses."""
        wait = 0.5
        while not self.lost.is_set():
            try:
                act()
                return
            except StoreRefusal as error:
                log.warning("%s; trying again", error)
                self._sign_of_life = time.monotonic()
                time.sleep(wait)
                wait = min(10.0, 2 * wait)

    def _reason(self, error: Exception) -> tuple[str, str]:
        """The code and words of a failure: the words are for clients, paths of this machine are taken out."""
        words = " ".join(str(error).split()).replace(f"{self.settings.store}/", "").replace(self.settings.store, "")
        words = words.replace(str(self._folder), self.settings.model).replace(
            self.settings.checkpoint, self.settings.model
        )
        if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
            return DISK_FULL, "the disk of the server is full"
        if "No space left on device" in words:
            return DISK_FULL, "the disk of the server is full"
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in words:
            return OUT_OF_MEMORY, _NO_MEMORY
        if isinstance(error, MovaError):
            return BAD_REQUEST, words
        traceback.print_exception(error)
        return INTERNAL, f"the clip could not be made ({type(error).__name__}); the server's log says why"


def work() -> int:
    """Read the settings, then work until standard input ends or says so."""
    show_warnings(_say)
    # Ctrl-C goes to all processes of a terminal; the server says what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Without a buffer, whose lock a thread that waits for the next line would hold at the end.
        given = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - as long as the process
        settings = WorkerSettings.from_line(given.readline())
        worker = VideoWorker(settings)
    except MovaError as error:
        _say(f"error: {error}")
        return UNUSABLE
    signal.signal(signal.SIGTERM, lambda *_: worker.stop.set())
    threading.Thread(target=_listen, args=(worker, given), daemon=True).start()
    worker.run()
    worker.store.close()
    return LOST if worker.lost.is_set() else ENDED


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _listen(worker: VideoWorker, given: io.RawIOBase) -> None:
    for line in given:
        if line.strip() == STOP.encode():
            worker.stop.set()
    if not worker.stop.is_set():
        # The server is gone, and whoever starts next takes the job back: nothing may be written any more.
        os._exit(LOST)


if __name__ == "__main__":
    sys.exit(work())
