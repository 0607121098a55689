"""A worker makes what jobs ask for: files, progress, batches, modes, and stops where nobody waits."""

import hashlib
import io
import json
from dataclasses import replace

import pytest
from mova_servers import write_tiny_model
from PIL import Image
from worker_tools import LIMITS, new_video, worker_settings

from mova_engine.memory import chosen_memory
from mova_engine.predict.hardware import hardware_of
from mova_engine.serving import batch_run
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.job_times import JobTimes
from mova_engine.serving.video_worker import VideoWorker

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def make_worker(checkpoint, tmp_path):
    made = []

    def make(**changes) -> VideoWorker:
        worker = VideoWorker(worker_settings(checkpoint, tmp_path / "store", **changes))
        worker.store.register(worker.name, "here", ["tiny"])
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.store.close()


@pytest.fixture
def worker(make_worker):
    return make_worker()


def digest(store: JobStore, video: str) -> str:
    return hashlib.sha256(store.file(video, "video.mp4").read_bytes()).hexdigest()


def test_a_clip_and_what_a_page_shows_of_it(worker):
    store = worker.store
    job = store.add(new_video())
    assert worker._work_once()
    done = store.get(job.id)
    assert (done.status, done.error_message, done.progress, done.step) == ("completed", None, 100, 8)
    names = {path.name for path in store.files.folder_of(job.id).iterdir()}
    assert names == {"video.mp4", "thumb.webp", "sprite.webp", "waveform.json", "manifest.json"}
    assert done.facts["bytes"] == store.file(job.id, "video.mp4").stat().st_size
    assert Image.open(store.file(job.id, "thumb.webp")).size == (64, 48)
    assert Image.open(store.file(job.id, "sprite.webp")).size == (5 * 64, 4 * 48)
    waveform = json.loads(store.file(job.id, "waveform.json").read_text())
    assert waveform["seconds"] == pytest.approx(25 / 24, abs=0.03)
    assert len(waveform["peaks"]) == 400 and 0 < max(waveform["peaks"]) <= 1
    assert not worker._work_once()


def test_a_batch_makes_the_bytes_that_each_clip_has_alone(make_worker):
    together, alone = make_worker(), make_worker(batch=1)
    jobs = [together.store.add(new_video(seed=seed, prompt=f"ball {seed}")) for seed in range(3)]
    assert together._work_once() and not together._work_once()
    again = [alone.store.add(new_video(seed=seed, prompt=f"ball {seed}")) for seed in range(3)]
    for _ in again:
        assert alone._work_once()
    digests = [digest(together.store, job.id) for job in jobs]
    assert len(set(digests)) == 3
    assert digests == [digest(alone.store, job.id) for job in again]


def test_progress_rises_and_what_was_measured_predicts_the_next(make_worker, monkeypatch):
    monkeypatch.setattr(batch_run, "_REPORT_S", 0.0)
    worker = make_worker()
    told, tell = [], worker.store.progress_of

    def progress_of(videos, name, stage, step, steps, percent, eta):
        told.append((stage, step, percent, eta))
        return tell(videos, name, stage, step, steps, percent, eta)

    worker.store.progress_of = progress_of
    for _ in range(2):
        told.clear()
        worker.store.add(new_video())
        assert worker._work_once()
        percents = [percent for _, _, percent, _ in told]
        assert percents == sorted(percents) and percents[-1] > 90
        assert [step for stage, step, _, _ in told if stage == "denoising"][-1] == 8
    # The second time seconds are known from the start.
    assert told[1][3] is not None
    assert {stage for stage, *_ in told} >= {"loading", "encoding", "denoising", "decoding", "finishing"}
    assert set(worker.store.measured("times tiny")) == {"84x1"}


@pytest.mark.parametrize("ask", ["request_cancel", "delete"])
def test_a_job_stops_within_a_step(worker, ask):
    job = worker.store.add(new_video(steps=50))
    steps, stepped = [], batch_run.BatchRun._on_step
    asking = JobStore.open(None, worker.store.files.folder, LIMITS)

    def on_step(self, step):
        steps.append(step.index)
        if step.index == 3:
            if ask == "delete":
                with pytest.raises(Exception, match="being stopped"):
                    asking.delete(job.id, wait_s=0)
            else:
                asking.request_cancel(job.id)
        stepped(self, step)

    batch_run.BatchRun._on_step = on_step
    try:
        assert worker._work_once()
    finally:
        batch_run.BatchRun._on_step = stepped
    assert steps == [0, 1, 2, 3]
    found = asking.get(job.id)
    assert found is None if ask == "delete" else (found.status, found.error_code) == ("failed", "cancelled")
    assert not list(asking.files.folder_of(job.id).glob("*"))
    asking.close()


def test_of_a_batch_the_others_go_on(worker):
    jobs = [worker.store.add(new_video(seed=seed)) for seed in range(3)]
    claim = worker.store.claim_alike

    def claim_then_cancel(*args):
        found = claim(*args)
        worker.store.request_cancel(jobs[1].id)
        return found

    worker.store.claim_alike = claim_then_cancel
    assert worker._work_once()
    assert [worker.store.get(job.id).status for job in jobs] == ["completed", "failed", "completed"]
    assert not worker.store.file(jobs[1].id, "video.mp4").exists()


def test_edits_and_extensions_go_on_from_a_clip(worker):
    store = worker.store
    source = store.add(new_video())
    assert worker._work_once()
    video = store.file(source.id, "video.mp4").read_bytes()
    wanted = {
        "sound": new_video(mode="edit", edit_of="audio", seed=3),
        "pictures": new_video(mode="edit", edit_of="video", seed=4),
        "window": new_video(mode="edit", edit_of="both", window=(0.4, 0.8), seed=5),
        "longer": new_video(mode="extension", frames=37, seed=6),
    }
    for job in wanted.values():
        store.put(job.id, "input.mp4", video)
        store.add(job)
    for _ in wanted:
        assert worker._work_once()
    for name, job in wanted.items():
        done = store.get(job.id)
        assert done.status == "completed", f"{name}: {done.error_message}"
    seconds = {
        name: json.loads(store.file(job.id, "waveform.json").read_text())["seconds"] for name, job in wanted.items()
    }
    assert seconds["longer"] == pytest.approx(37 / 24, abs=0.03)
    assert seconds["window"] == pytest.approx(25 / 24, abs=0.03)


def test_first_and_last_frames_change_the_clip(worker):
    store, picture = worker.store, io.BytesIO()
    Image.new("RGB", (80, 60), (200, 10, 10)).save(picture, "png")
    jobs = [new_video(), new_video(first_frame=True), new_video(last_frame=True)]
    for job in jobs:
        store.put(job.id, "first.png", picture.getvalue())
        store.put(job.id, "last.png", picture.getvalue())
        store.add(job)
    while worker._work_once():
        pass
    assert [store.get(job.id).status for job in jobs] == ["completed"] * 3
    assert len({digest(store, job.id) for job in jobs}) == 3


@pytest.mark.parametrize(
    ("changes", "data", "words"),
    [
        ({"mode": "edit", "edit_of": "audio"}, b"no video", "input.mp4"),
        ({"mode": "edit"}, b"", "say edit_of, or a window"),
        ({"steps": 0}, b"", "steps must be at least 1"),
        ({"text_scale": 3.0}, b"", "has no effect with guidance 'none'"),
        ({"adapters": {"style": 1.0}}, b"", "unknown adapter 'style'"),
    ],
)
def test_what_cannot_be_made_fails_in_words_without_paths(worker, changes, data, words):
    store = worker.store
    job = new_video(**changes)
    if data:
        store.put(job.id, "input.mp4", data)
    store.add(job)
    assert worker._work_once()
    failed = store.get(job.id)
    assert (failed.status, failed.error_code) == ("failed", "bad_request"), failed.error_message
    assert words in failed.error_message
    assert str(store.files.folder) not in failed.error_message
    good = store.add(new_video())
    assert worker._work_once()
    assert store.get(good.id).status == "completed"


def test_previews_show_the_clip_while_it_is_made(make_worker, monkeypatch):
    monkeypatch.setattr(batch_run, "_PREVIEW_S", 0.0)
    worker, seen = make_worker(), []
    job, show = worker.store.add(new_video()), batch_run.BatchRun._show

    def shown(self, step):
        show(self, step)
        path = worker.store.file(job.id, "preview.webp")
        if path.exists():
            seen.append(Image.open(path).size)

    monkeypatch.setattr(batch_run.BatchRun, "_show", shown)
    assert worker._work_once()
    assert len(seen) >= 6 and set(seen) == {(64, 48)}
    assert not worker.store.file(job.id, "preview.webp").exists(), "a clip that is there needs no preview"


def test_a_full_disk_fails_the_job_and_loses_nothing(worker, monkeypatch):
    def full(path, data, **_):
        raise OSError(28, "No space left on device", str(path))

    job, after = worker.store.add(new_video()), None
    with monkeypatch.context() as patched:
        patched.setattr(batch_run, "write_atomic", full)
        assert worker._work_once()
    failed = worker.store.get(job.id)
    assert (failed.status, failed.error_code) == ("failed", "disk_full")
    after = worker.store.add(replace(new_video()))
    assert worker._work_once()
    assert worker.store.get(after.id).status == "completed"


def test_a_planned_step_predicts_the_first_clip(make_worker, monkeypatch):
    """On a device whose speed the planner knows; of this CPU it has the memory alone."""
    assert JobTimes(make_worker(memory="auto").store, "tiny").stages(100, 2) is None
    monkeypatch.setattr(chosen_memory, "hardware_of", lambda kind, name: (hardware_of(kind, name)[0], True))
    worker = make_worker(memory="auto")
    chosen, times = worker.pipeline.chosen, JobTimes(worker.store, "tiny")
    found = times.stages(worker.pipeline.mova.config.clip.video_tokens, chosen.plan.run.job.evaluations)
    assert found.step == chosen.plan.prediction.seconds > 0
