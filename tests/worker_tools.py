"""Workers for tests: in this process, or forked from it, so that each starts at once with its model loaded."""

import os
import secrets
import signal
import time
from dataclasses import replace
from pathlib import Path

from mova_engine.config.enhance import EnhanceConfig
from mova_engine.config.signing import ProvenanceSettings
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.store_database import StoreLimits
from mova_engine.serving.video_job import VideoJob, VideoSettings, new_id
from mova_engine.serving.video_worker import VideoWorker
from mova_engine.serving.worker_settings import WorkerSettings

SETTINGS = VideoSettings(
    prompt="a red ball", width=64, height=48, frames=25, fps=24.0, seconds="1", size="64x48", steps=8, guidance="none"
)
LIMITS = StoreLimits(lease_s=30.0)


def worker_settings(checkpoint: Path, store: Path, **changes) -> WorkerSettings:
    """Settings of a worker that makes clips of the model "tiny", on the CPU."""
    values = dict.fromkeys(("database", "dtype", "memory", "vram", "ram", "batch"))
    values |= {"store": str(store), "checkpoint": str(checkpoint), "model": "tiny", "device": "cpu", "threads": 1}
    more = {"name": f"w-{secrets.token_hex(4)}", "lora": (), "hang_s": 600.0, "sign": False, "limits": LIMITS}
    more |= {"enhance": EnhanceConfig(), "provenance": ProvenanceSettings()}
    return WorkerSettings(**{**values, **more, **changes})


def new_video(**settings) -> VideoJob:
    """A job of the model "tiny"."""
    return VideoJob(id=new_id(), model="tiny", settings=replace(SETTINGS, **settings), steps=8)


class ForkedWorker:
    """A worker in a process of its own, forked from this one and its open pipeline."""

    def __init__(self, worker: VideoWorker) -> None:
        self.name = f"w-{secrets.token_hex(4)}"
        worker.store.engine.dispose()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                # Connections are not shared with the parent.
                worker.store = JobStore.open(worker.settings.database, Path(worker.settings.store), LIMITS)
                worker._preview._store = worker.store
                worker.name = self.name
                worker.run()
                status = 0
            finally:
                os._exit(status)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def wait_for(condition, seconds: float = 120.0, every: float = 0.002):
    """What `condition` gives, as soon as it is something. AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(every)
    raise AssertionError("it did not happen")
