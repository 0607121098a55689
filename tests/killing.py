"""Kill -9 of a worker in each state of its job: what is lost. As a program: how many rounds of each state.

python tests/killing.py [ROUNDS] [DATABASE_URL]
"""

import hashlib
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mova_servers import write_tiny_model
from worker_tools import LIMITS, ForkedWorker, new_video, wait_for, worker_settings

from mova_engine.errors import MovaError
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.store_errors import StillStoppingError
from mova_engine.serving.video_worker import VideoWorker

STATES = ("queued", "loading", "encoding", "denoising", "decoding", "finishing", "deleting")


def kill_round(worker: VideoWorker, store: JobStore, state: str, expected: str) -> str:
    """One round: a job, a worker that is killed in the state, another one that takes over. Returns what was left:
    "whole", or "gone" of a job that was deleted. AssertionError for anything else.
    """
    job = store.add(new_video())
    if state == "queued":
        killed = None
    else:
        killed = ForkedWorker(worker)
        if state == "deleting":
            wait_for(lambda: store.get(job.id).step >= 1)
            # The worker may stop, and remove, before it is killed: then nothing is left to be taken over.
            with suppress(StillStoppingError):
                store.delete(job.id, wait_s=0)
        else:
            ended = ("completed",)
            wait_for(lambda: (found := store.get(job.id)).stage == state or found.status in ended)
        killed.kill()
        assert state == "deleting" or store.get(job.id) is not None, "a job vanished"
        # What the supervisor does when it sees the process gone.
        store.recover([killed.name])
    if state == "deleting":
        assert store.get(job.id) is None and not store.files.folder_of(job.id).exists()
        return "gone"
    after = ForkedWorker(worker)
    try:
        done = wait_for(lambda: found if (found := store.get(job.id)).ended else None)
    finally:
        after.kill()
        store.recover([after.name])
    assert done.status == "completed", f"{state}: {done.error_code} {done.error_message}"
    assert done.attempts <= 2
    found = hashlib.sha256(store.file(job.id, "video.mp4").read_bytes()).hexdigest()
    assert found == expected, f"{state}: another clip than without a kill"
    left = {path.name for path in store.files.folder_of(job.id).iterdir()}
    assert left == {"video.mp4", "thumb.webp", "sprite.webp", "waveform.json", "manifest.json"}, left
    return "whole"


def kill_rounds(checkpoint: Path, folder: Path, rounds: int, database: str | None = None) -> Counter:
    """So many rounds of each state: how many ended how."""
    worker = VideoWorker(worker_settings(checkpoint, folder, database=database))
    store = JobStore.open(database, folder, LIMITS)
    store.register(worker.name, "here", ["tiny"])
    first = store.add(new_video())
    assert worker._work_once() and store.get(first.id).status == "completed"
    expected = hashlib.sha256(store.file(first.id, "video.mp4").read_bytes()).hexdigest()
    store.leave(worker.name)
    found: Counter = Counter()
    for _ in range(rounds):
        for state in STATES:
            store.engine.dispose()
            found[state, kill_round(worker, store, state, expected)] += 1
    assert store.sweep(0.0) == []
    store.close()
    worker.store.close()
    return found


if __name__ == "__main__":
    count, url = int((sys.argv[1:2] or ["20"])[0]), (sys.argv[2:3] or [None])[0]
    with tempfile.TemporaryDirectory() as place:
        begun = time.monotonic()
        try:
            outcome = kill_rounds(write_tiny_model(Path(place) / "tiny"), Path(place) / "store", count, url)
        except MovaError as error:
            sys.exit(f"error: {error}")
        for (state, end), number in sorted(outcome.items()):
            print(f"{state:10} {number} of {count} {end}")
        print(f"{time.monotonic() - begun:.0f} s")
