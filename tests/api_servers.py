"""Applications of the API on stores of their own, with a worker that paints plain clips, and clients for them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from mova_engine.config.model import PRESETS, ClipConfig
from mova_engine.data.media.write import encode_mp4
from mova_engine.inference.prompts.prompt_checks import TextLimit
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.service import ApiLimits, ServedModel, Service
from mova_engine.serving.store_database import StoreLimits
from mova_engine.serving.video_job import VideoJob

SMALL = ServedModel(
    name="small",
    clip=ClipConfig(frames=33, height=48, width=64),
    steps=4,
    guidance="text",
    adapters=("style", "grain"),
    tokens=TextLimit(lambda text: len(text.split()) + 1, 40),
)
# As MOVA's own: 193 frames of 352x640.
LARGE = ServedModel(name="large", clip=PRESETS["mova-360p"].clip, steps=50, guidance="text")


def service(**more) -> Service:
    """What the tests' servers serve."""
    return Service(**{"models": (SMALL, LARGE), **more})


def open_store(folder: Path, **limits) -> JobStore:
    """A store in a new folder."""
    return JobStore.open(None, folder / "store", StoreLimits(**limits))


def paint(job: VideoJob) -> bytes:
    """An mp4 of the job's size whose colour is its seed's."""
    settings, rate = job.settings, 48000
    frames = min(settings.frames, 9)
    colour = np.random.default_rng(settings.seed).integers(0, 255, 3, np.uint8)
    pictures = np.broadcast_to(colour, (frames, settings.height, settings.width, 3)).copy()
    sound = np.zeros(int(frames / settings.fps * rate), np.float32)
    return encode_mp4("x", pictures, sound, settings.fps, rate)


def finish(store: JobStore, job: VideoJob, worker: str) -> bool:
    """Store what a worker makes of a job, and say that it is done."""
    store.put(job.id, "video.mp4", paint(job))
    for name in ("thumb.webp", "sprite.webp"):
        store.put(job.id, name, f"{name} of {job.id}".encode())
    store.put(job.id, "manifest.json", b'{"seed": 1}')
    store.put(job.id, "waveform.json", b'{"seconds": 1.0, "peaks": [0.5]}')
    return store.finish(job.id, worker, {"seconds": 0.1})


@contextmanager
def worker(store: JobStore, step_s: float = 0.02) -> Iterator[str]:
    """A thread that takes jobs and reports steps as a worker does, and stops at a cancelled one."""
    name, stop = "painter", threading.Event()

    def work() -> None:
        while not stop.is_set():
            job = store.claim(name, ["small", "large"])
            if job is None:
                stop.wait(0.02)
                continue
            for step in range(1, job.steps + 1):
                time.sleep(step_s)
                if not store.progress(job.id, name, "denoise", step, job.steps, 100 * step / (job.steps + 1), 0.1):
                    store.stopped(job.id, name)
                    break
            else:
                finish(store, job, name)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield name
    finally:
        stop.set()
        thread.join(30)


@contextmanager
def listening(store: JobStore, served: Service) -> Iterator[str]:
    """A running server in a thread of its own; its address."""
    import uvicorn

    from mova_engine.serving.video_api import video_app
    from mova_engine.web.listening import listening_socket

    listener = listening_socket("127.0.0.1", 0)
    config = uvicorn.Config(video_app(store, served), log_level="warning", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started and time.monotonic() < end:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        store.close()


def limits(**more) -> ApiLimits:
    """Limits, some of them other than usual."""
    return replace(ApiLimits(), **more)
