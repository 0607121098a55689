"""The manifest of a served clip makes the same clip again, tells clients nothing of the server, and names sources."""

import json

import numpy as np
import pytest
from mova_servers import write_tiny_model
from worker_tools import new_video, worker_settings

from mova_engine.config.signing import ProvenanceSettings
from mova_engine.data.media.verified_file import verify_file
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main as sample
from mova_engine.serving.input_files import png_bytes
from mova_engine.serving.video_worker import VideoWorker
from mova_engine.serving.worker_settings import WorkerSettings

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def worker(checkpoint, tmp_path):
    found = VideoWorker(worker_settings(checkpoint, tmp_path / "store"))
    found.store.register(found.name, "here", ["tiny"])
    yield found
    found.store.close()


def gradient() -> bytes:
    """A picture of the model's size, as PNG."""
    return png_bytes(np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8))


def test_mova_sample_makes_a_served_clip_again(worker, checkpoint, tmp_path, capsys):
    store = worker.store
    jobs = [new_video(seed=7, first_frame=True), new_video(seed=8, prompt="rain")]
    store.put(jobs[0].id, "first.png", gradient())
    for job in jobs:
        store.add(job)
    assert worker._work_once()
    for number, job in enumerate(jobs):
        path = store.file(job.id, "manifest.json")
        text = path.read_text()
        assert str(tmp_path) not in text and str(checkpoint) not in text
        assert json.loads(text)["batch"] == {"size": 2, "position": number}
        out = tmp_path / f"again{number}"
        again = ["--manifest", str(path), "--checkpoint", str(checkpoint), "--out", str(out), "--no-provenance"]
        assert sample(again) == 0
        said = capsys.readouterr().out
        assert "the same file, byte for byte" in said and "warning" not in said
        assert (out / "000.mp4").read_bytes() == store.file(job.id, "video.mp4").read_bytes()


def test_without_its_weights_it_says_where_they_are_given(worker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = worker.store.add(new_video())
    assert worker._work_once()
    with pytest.raises(MovaError, match="--checkpoint DIR says where"):
        sample(["--manifest", str(worker.store.file(job.id, "manifest.json")), "--out", str(tmp_path / "out")])


def test_edits_and_extensions_are_signed_with_their_source(checkpoint, tmp_path):
    pytest.importorskip("c2pa", reason="the extra serve is not installed")
    worker = VideoWorker(worker_settings(checkpoint, tmp_path / "store", sign=True))
    store = worker.store
    store.register(worker.name, "here", ["tiny"])
    source = store.add(new_video())
    assert worker._work_once()
    video = store.file(source.id, "video.mp4").read_bytes()
    jobs = [new_video(mode="edit", edit_of="audio", seed=3), new_video(mode="extension", frames=37, seed=6)]
    for job in jobs:
        store.put(job.id, "input.mp4", video)
        store.add(job)
        assert worker._work_once()
        assert store.get(job.id).status == "completed"
        found = verify_file(store.file(job.id, "video.mp4"))
        assert found.state == "valid" and len(found.ingredients) == 1, found
    assert not verify_file(store.file(source.id, "video.mp4")).ingredients
    store.close()


@pytest.mark.parametrize("prompt", [False, True])
def test_the_prompt_is_in_the_signature_where_the_server_says_so(checkpoint, tmp_path, prompt):
    pytest.importorskip("c2pa", reason="the extra serve is not installed")
    settings = worker_settings(checkpoint, tmp_path / "store", sign=True, provenance=ProvenanceSettings(prompt=prompt))
    assert WorkerSettings.from_line(settings.to_line()) == settings
    worker = VideoWorker(settings)
    worker.store.register(worker.name, "here", ["tiny"])
    job = worker.store.add(new_video(prompt="rain"))
    assert worker._work_once()
    facts = verify_file(worker.store.file(job.id, "video.mp4")).facts
    assert facts.get("prompt") == ("rain" if prompt else None)
    worker.store.close()
