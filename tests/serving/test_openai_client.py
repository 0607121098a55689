"""OpenAI's own client, unmodified, through every call of its videos API against a running server."""

import io
import time
import warnings
from itertools import islice

import httpx
import numpy as np
import pytest
from api_servers import finish, listening, open_store, service, worker
from PIL import Image

pytestmark = [pytest.mark.serving, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
openai = pytest.importorskip("openai", reason="the client is not installed: pip install openai")

# For plain requests; the first picture of a server waits for a process that reads it.
plain = httpx.Client(timeout=120)


def picture(width=120, height=90) -> bytes:
    """A PNG with a gradient."""
    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("openai"))
    with worker(store), listening(store, service()) as url:
        yield url, store


@pytest.fixture
def client(server):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield openai.OpenAI(base_url=f"{server[0]}/v1", api_key="unused", max_retries=0)


def test_create_and_poll_returns_a_clip(client):
    video = client.videos.create_and_poll(prompt="a red ball", extra_body={"x_mova": {"seed": 11}})
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert video.object == "video" and video.model == "small" and video.size == "64x48"
    data = client.videos.download_content(video.id).read()
    assert data[4:8] == b"ftyp"
    assert video.x_mova["seed"] == 11


def test_a_file_as_first_frame_is_used(client, server):
    video = client.videos.create(prompt="a ball", input_reference=("first.png", picture(), "image/png"))
    used = client.get(f"/videos/{video.id}/content?variant=first_frame", cast_to=httpx.Response)
    with Image.open(io.BytesIO(used.content)) as image:
        assert image.size == (64, 48)
    assert video.x_mova["settings"]["first_frame"]


def test_an_address_with_data_is_a_first_frame_too(client):
    import base64

    address = "data:image/png;base64," + base64.b64encode(picture()).decode()
    # This version's own argument takes files alone, though its types say otherwise.
    video = client.videos.create(prompt="a ball", extra_body={"input_reference": {"image_url": address}})
    assert video.x_mova["settings"]["first_frame"]


def test_the_clients_own_file_ids_are_refused_by_name(client):
    with pytest.raises(openai.BadRequestError, match=r"file_id.*send the file") as refused:
        client.videos.create(prompt="a ball", extra_body={"input_reference": {"file_id": "file-123"}})
    assert (refused.value.param, refused.value.type) == ("input_reference", "invalid_request_error")


def test_sizes_and_seconds_as_the_client_sends_them(client):
    video = client.videos.create(prompt="a ball", model="large", size="640x352", seconds="8")
    assert (video.seconds, video.size, video.x_mova["frames"]) == ("8", "640x352", 193)
    client.videos.delete(video.id)
    with pytest.raises(openai.BadRequestError, match="nearest sizes are 640x352"):
        client.videos.create(prompt="a ball", model="large", size="1792x1024")
    with pytest.raises(openai.BadRequestError, match="unknown model 'sora-2'"):
        client.videos.create(prompt="a ball", model="sora-2")


def test_pages_follow_one_another(tmp_path):
    store = open_store(tmp_path)
    with listening(store, service()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        made = [client.videos.create(prompt=f"clip {n}").id for n in range(23)]
        assert [video.id for video in client.videos.list(limit=5, order="asc")] == made
        assert [video.id for video in client.videos.list(limit=100)] == made[::-1]
        page = client.videos.list(after=made[9], limit=10, order="asc")
        assert [video.id for video in page.data] == made[10:20] and page.has_more and page.last_id == made[19]
        assert [video.id for video in islice(client.videos.list(), 3)] == made[:-4:-1]


def test_variants_of_content(client):
    video = client.videos.create_and_poll(prompt="a ball")
    assert client.videos.download_content(video.id, variant="thumbnail").read().startswith(b"thumb.webp")
    assert client.videos.download_content(video.id, variant="spritesheet").read().startswith(b"sprite.webp")
    for variant in ("manifest", "waveform"):
        assert client.videos.download_content(video.id, variant=variant).read().startswith(b"{")


def test_content_before_the_end_is_a_conflict_that_is_not_tried_again(tmp_path):
    store = open_store(tmp_path)
    with listening(store, service()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=2)
        video = client.videos.create(prompt="a ball")
        with pytest.raises(openai.ConflictError, match="not ready: it is queued"):
            client.videos.download_content(video.id)
        figures = plain.get(f"{url}/metrics").text
        assert 'route="/v1/videos/{video_id}/content",status="409"} 1.0' in figures


def test_remix_edit_and_extend(client):
    source = client.videos.create_and_poll(
        prompt="a ball", input_reference=("a.png", picture()), extra_body={"seed": 5}
    )
    remix = client.videos.remix(source.id, prompt="a blue ball")
    assert remix.remixed_from_video_id == source.id and remix.x_mova["seed"] == 5
    assert remix.x_mova["settings"]["first_frame"] and remix.prompt == "a blue ball"
    edit = client.videos.edit(prompt="with rain", video=openai.omit, extra_body={"video": {"id": source.id}})
    assert edit.x_mova["settings"]["first_frame"] and edit.size == source.size
    assert edit.remixed_from_video_id == source.id
    data = client.videos.download_content(source.id).read()
    window = {"x_mova": {"window": [0.1, 0.2], "edit_of": "audio"}}
    by_file = client.videos.edit(prompt="with rain", video=("clip.mp4", data, "video/mp4"), extra_body=window)
    assert by_file.x_mova["mode"] == "edit" and by_file.x_mova["frames"] == 9
    assert by_file.x_mova["settings"]["window"] == [0.1, 0.2]
    named = {"video": {"id": source.id}}
    longer = client.videos.extend(prompt="it rolls on", seconds="4", video=openai.omit, extra_body=named)
    assert longer.x_mova["mode"] == "extension" and longer.x_mova["frames"] == 33 + 96


def test_delete_stops_and_removes(client, server):
    video = client.videos.create(prompt="a ball", extra_body={"num_inference_steps": 150})
    found = client.videos.delete(video.id)
    assert (found.id, found.deleted, found.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    assert not server[1].file(video.id, "video.mp4").parent.exists()


def test_a_cancelled_job_ends_the_clients_polling(client):
    video = client.videos.create(prompt="a ball", extra_body={"num_inference_steps": 150})
    client.post(f"/videos/{video.id}/cancel", cast_to=object)
    found = client.videos.poll(video.id)
    assert (found.status, found.error.code) == ("failed", "cancelled")


def test_characters_are_refused_by_name(client):
    with pytest.raises(openai.InternalServerError, match="characters are not implemented") as refused:
        client.videos.create_character(name="x", video=("a.mp4", b"123"))
    assert refused.value.status_code == 501
    with pytest.raises(openai.InternalServerError, match="characters are not implemented"):
        client.videos.get_character("char_1")


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["small", "large"]
    assert client.models.retrieve("large").x_mova["default_frames"] == 193
    with pytest.raises(openai.NotFoundError, match="Did you mean 'large'"):
        client.models.retrieve("larg")


def test_the_clients_wait_is_a_fiftieth_of_what_is_predicted(tmp_path):
    store = open_store(tmp_path)
    with listening(store, service(predict=lambda model, settings: 100.0)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused")
        raw = client.videos.with_raw_response.create(prompt="a ball")
        assert raw.headers["openai-poll-after-ms"] == "2000"
        again = client.videos.with_raw_response.retrieve(raw.parse().id)
        assert again.headers["openai-poll-after-ms"] == "2000"


def test_a_full_queue_says_when_to_come_again(tmp_path):
    store = open_store(tmp_path, queue=2)
    with listening(store, service(predict=lambda model, settings: 30.0)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        for _ in range(2):
            client.videos.create(prompt="a ball")
        with pytest.raises(openai.RateLimitError, match="2 jobs wait already") as refused:
            client.videos.create(prompt="a ball")
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert len(list((tmp_path / "store" / "videos").iterdir())) == 2


async def _with_async_client(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        video = await client.videos.create_and_poll(prompt="a ball", input_reference=picture())
        content = await client.videos.download_content(video.id)
        return video.status, await content.aread()


def test_the_asynchronous_client(server):
    import asyncio

    status, data = asyncio.run(_with_async_client(server[0]))
    assert status == "completed" and data[4:8] == b"ftyp"


def test_a_client_of_movas_workflow(server):
    """Form fields, polling and download as MOVA's published client does them: plain requests, no OpenAI package."""
    url, _ = server
    form = {
        "prompt": "a red ball",
        "size": "64x48",
        "num_frames": "33",
        "fps": "24",
        "seed": "42",
        "guidance_scale": "5.0",
        "num_inference_steps": "6",
    }
    files = {"input_reference": ("first.png", picture(), "image/png")}
    task = plain.post(f"{url}/v1/videos", data=form, files=files).json()
    assert task["status"] == "queued" and task["progress"] == 0
    seen = set()
    end = time.monotonic() + 120
    while time.monotonic() < end:
        task = plain.get(f"{url}/v1/videos/{task['id']}").json()
        seen.add(task["status"])
        if task["status"] in ("completed", "failed", "error"):
            break
        time.sleep(0.01)
    assert task["status"] == "completed" and seen <= {"queued", "in_progress", "completed"}
    assert plain.get(f"{url}/v1/videos/{task['id']}/content").content[4:8] == b"ftyp"
    asked = {"model": "large", "prompt": "a ball", "size": "640x360", "num_frames": "193", "fps": "24"}
    wide = plain.post(f"{url}/v1/videos", data=asked).json()
    assert wide["size"] == "640x352"  # what MOVA's 360p makes
    plain.delete(f"{url}/v1/videos/{wide['id']}")


def test_a_finished_clip_stays_what_it_is(server, tmp_path):
    store = open_store(tmp_path)
    with listening(store, service()) as url:
        sent = {"prompt": "a ball", "seed": 3}
        files = [plain.post(f"{url}/v1/videos", json=sent).json()["id"] for _ in range(2)]
        for _ in files:
            assert finish(store, store.claim("w", ["small"]), "w")
        first, second = (plain.get(f"{url}/v1/videos/{video}/content").content for video in files)
        assert first == second and len(first) > 1000
