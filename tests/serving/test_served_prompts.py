"""Prompts that a server rewrites: by a job's worker, and for the page; what came of it is told to clients."""

import json
import threading
import urllib.request
from dataclasses import replace

import pytest
from chat_servers import BAD, GOOD, PROMPT, chat_server
from mova_servers import TINY, mova_server, write_tiny_model
from worker_tools import new_video, wait_for, worker_settings

from mova_engine.config.enhance import EnhanceConfig
from mova_engine.serving.video_worker import VideoWorker
from mova_engine.serving.worker_settings import WorkerSettings

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model that reads as many tokens as such prompts have."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", replace(TINY, text_tokens=1024))


@pytest.fixture
def language_model():
    with chat_server() as running:
        yield running


def test_a_worker_rewrites_prompts_of_jobs_that_ask_for_it(checkpoint, language_model, tmp_path):
    language_model.say(GOOD)
    config = EnhanceConfig(backend="endpoint", url=language_model.url, model="small")
    settings = worker_settings(checkpoint, tmp_path / "store", enhance=config)
    assert WorkerSettings.from_line(settings.to_line()) == settings
    worker = VideoWorker(settings)
    store = worker.store
    store.register(worker.name, "here", ["tiny"])
    good, plain, bad = (store.add(new_video(prompt=PROMPT, enhance=each)) for each in ("endpoint", "none", "endpoint"))
    assert worker._work_once() and worker._work_once()
    language_model.say(BAD)
    assert worker._work_once()
    made = [store.get(job.id) for job in (good, plain, bad)]
    assert [(job.status, job.error_message) for job in made] == [("completed", None)] * 3
    assert [job.settings.enhanced_prompt for job in made] == [GOOD, None, None]
    assert [job.settings.prompt for job in made] == [PROMPT] * 3
    assert "prompt_warning" not in made[0].facts and "prompt_warning" not in made[1].facts
    assert "'Look at the river!' must stand there letter for letter" in made[2].facts["prompt_warning"]
    manifest = json.loads(store.file(good.id, "manifest.json").read_text())
    assert (manifest["prompt"], manifest["original_prompt"]) == (GOOD, PROMPT)
    # The words of the third are those of the second: so is the clip.
    videos = [store.file(job.id, "video.mp4").read_bytes() for job in made]
    assert videos[1] == videos[2] != videos[0]
    store.close()


def test_a_job_that_is_cancelled_waits_for_no_language_model(checkpoint, language_model, tmp_path):
    asked, ended = threading.Event(), threading.Event()

    def never(handler):
        asked.set()
        ended.wait(60)

    language_model.replies = [(200, {}, never)]
    config = EnhanceConfig(backend="endpoint", url=language_model.url, model="small", timeout=60)
    worker = VideoWorker(worker_settings(checkpoint, tmp_path / "store", enhance=config))
    store = worker.store
    store.register(worker.name, "here", ["tiny"])
    job = store.add(new_video(prompt=PROMPT, enhance="endpoint"))
    works = threading.Thread(target=worker._work_once)
    works.start()
    assert asked.wait(30)
    assert store.request_cancel(job.id).status == "in_progress"
    works.join(20)
    assert not works.is_alive() and not ended.is_set()
    assert store.get(job.id).error_code == "cancelled"
    # A worker that is to end gives the job back.
    other = store.add(new_video(prompt=PROMPT, enhance="endpoint"))
    asked.clear()
    works = threading.Thread(target=worker.run)
    works.start()
    assert asked.wait(30)
    worker.stop.set()
    works.join(20)
    assert not works.is_alive() and store.get(other.id).status == "queued"
    ended.set()
    store.close()


def test_a_server_rewrites_prompts_for_its_clients(checkpoint, language_model, tmp_path):
    language_model.say(GOOD)
    options = "--enhance", "endpoint", "--enhance.url", language_model.url, "--enhance.model", "small"
    with mova_server(checkpoint, tmp_path / "store", *options) as server:
        model = server.get("/v1/models")[1]["data"][0]
        assert model["x_mova"]["enhance"] == "endpoint"

        def post(path, **fields):
            headers = {"content-type": "application/json"}
            asked = urllib.request.Request(server.url + path, json.dumps(fields).encode(), headers)
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return json.load(answer)

        found = post("/v1/prompts/enhance", prompt=PROMPT)
        assert (found["used"], found["prompt"], found["original"]) == ("enhanced", GOOD, PROMPT)
        job = post("/v1/videos", prompt=PROMPT, enhance="endpoint")["id"]
        done = wait_for(lambda: (now := server.get(f"/v1/videos/{job}")[1])["status"] == "completed" and now, every=0.2)
        assert (done["prompt"], done["x_mova"]["enhanced_prompt"]) == (PROMPT, GOOD)
