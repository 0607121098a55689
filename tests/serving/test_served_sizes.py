"""Sizes that fit: workers say how large clips may be in their memory, and the API offers and takes no larger ones."""

from dataclasses import replace

import pytest
from api_servers import service
from deep_model import DEEP, save_deep
from worker_tools import LIMITS, worker_settings

from mova_engine.backend import get_backend
from mova_engine.config.memory import memory_of_word
from mova_engine.errors import MovaError
from mova_engine.inference.sampling_memory import choose_for_sampling, longest_that_fits
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.served_room import ServedRoom
from mova_engine.serving.video_worker import VideoWorker

pytestmark = pytest.mark.serving
TestClient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed").TestClient
CPU = get_backend("cpu")
# Long enough that clips, not weights, take the memory.
LONG = replace(DEEP, clip=replace(DEEP.clip, frames=193, height=64, width=96))


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return save_deep(tmp_path_factory.mktemp("deep") / "model")


def planned(folder, frames: int, ram: str = "8GB") -> float:
    """Bytes of the host that a clip of so many frames needs, as the planner has it, of what a limit must allow."""
    model = replace(LONG, clip=replace(LONG.clip, frames=frames))
    found = choose_for_sampling(
        memory_of_word("resident"), folder, model, CPU, dtype=None, evaluations=1, batch=1, ram=ram
    )
    assert found is not None
    return found.planned_bytes / found.plan.hardware.usable


def longest(folder, ram: str):
    settings = memory_of_word("resident")
    return longest_that_fits(settings, folder, LONG, CPU, dtype=None, evaluations=1, batch=lambda _: 1, ram=ram)


def test_the_longest_clip_that_fits_is_the_planner_s(deep):
    """By its choice for each length: what is found is taken, four frames more are refused."""
    least, most = planned(deep, 1), planned(deep, 193)
    assert most > 1.2 * least
    for share in (0.1, 0.5, 0.9):
        ram = f"{(least + share * (most - least)) / 1e6:.4f}MB"
        found = longest(deep, ram)
        assert (found.height, found.width) == (64, 96) and 1 <= found.frames < 193
        assert planned(deep, found.frames, ram) > 0
        with pytest.raises(MovaError, match="nothing fits"):
            planned(deep, found.frames + 4, ram)
    assert longest(deep, "8GB") == LONG.clip
    with pytest.raises(MovaError, match="nothing fits in the memory that is allowed"):
        longest(deep, "1MB")


@pytest.fixture
def store(tmp_path):
    found = JobStore.open(None, tmp_path / "store", LIMITS)
    yield found
    found.close()


def test_what_does_not_fit_is_neither_offered_nor_taken(store):
    """The small model's clip is 64 x 48 with 33 frames: 9 latent frames of 12 tokens. Where 60 tokens fit, these are 5
    latent frames, or 17 frames.
    """
    from mova_engine.serving.video_api import video_app

    room = ServedRoom(store, "small")
    served = service(room=lambda model: room.tokens() if model.name == "small" else None)
    client = TestClient(video_app(store, served), base_url="http://localhost")

    def offered(name="small"):
        return client.get(f"/v1/models/{name}").json()["x_mova"]

    free = offered()
    assert free["default_frames"] == free["frames"][-1] == 33
    store.add_measured("room small", {"here": 60})
    found = offered()
    assert found["frames"] == [1, 5, 9, 13, 17] and found["default_frames"] == 17
    assert {"width": 64, "height": 48} in found["sizes"]
    listed = client.get("/v1/models").json()["data"]
    assert [each["x_mova"] for each in listed] == [found, offered("large")]
    # Each size that is offered is taken with each length.
    for size in found["sizes"]:
        sent = {"prompt": "a", **size, "num_frames": found["default_frames"]}
        assert client.post("/v1/videos", json=sent).status_code == 200, size
    made = client.post("/v1/videos", json={"prompt": "a"})
    assert made.status_code == 200 and made.json()["x_mova"]["frames"] == 17
    refused = {
        "of 64x48 at most 17 in the memory of this server's device); the nearest number is 17": {"num_frames": 33},
        "33 frames, and this server makes 17": {"seconds": 33 / 24},
        "too large for 17 frames in the memory of this server's device); the nearest sizes are": {"size": "128x96"},
    }
    for words, more in refused.items():
        answer = client.post("/v1/videos", json={"prompt": "a", **more})
        assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.json()


def test_the_room_is_that_of_the_hosts_that_work_now(store):
    room = ServedRoom(store, "tiny")
    assert room.tokens() is None
    clips = [replace(LONG.clip, frames=frames) for frames in (193, 97, 49)]
    for host, clip in zip(("large", "middle", "small"), clips, strict=True):
        room.note(host, LONG.clip, clip)
    assert room.tokens() == clips[2].video_tokens
    store.register("w1", "middle", ["tiny"])
    store.register("w2", "small", ["another"])
    assert room.tokens() == clips[1].video_tokens
    store.register("w3", "large", ["tiny"])
    assert room.tokens() == clips[1].video_tokens
    store.leave("w1")
    assert room.tokens() is None
    assert ServedRoom(store, "another").tokens() is None


def test_a_worker_says_what_fits_its_device(deep, tmp_path):
    own = DEEP.clip

    def room(**limits):
        worker = VideoWorker(worker_settings(deep, tmp_path / "store", **limits))
        try:
            return worker.store.measured("room tiny"), worker.pipeline.mova.config.clip.frames
        finally:
            worker.store.close()

    assert list(room()[0].values()) == [None]
    model = replace(DEEP, clip=own)
    sizes = [
        choose_for_sampling(
            memory_of_word("resident"), deep, replace(model, clip=replace(own, frames=frames)), CPU,
            dtype=None, evaluations=1, batch=16, ram="8GB",
        )
        for frames in (1, own.frames)
    ]  # fmt: skip
    least, most = (found.planned_bytes / found.plan.hardware.usable for found in sizes)
    noted, frames = room(memory="resident", ram=f"{(least + most) / 2e6:.5f}MB")
    assert 1 <= frames < own.frames
    assert list(noted.values()) == [replace(own, frames=frames).video_tokens]
