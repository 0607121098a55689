"""Micro-batches prepared in a thread: the same as without it, counted when taken, and its errors and ends."""

import dataclasses
import threading
import time
from dataclasses import replace

import pytest
import torch
from data_pipeline.conftest import CLIP
from data_pipeline.test_loader import BATCH

from mova_engine.backend import get_backend
from mova_engine.codecs import build_text_encoder
from mova_engine.config.diffusion import GIVEN
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import load_config
from mova_engine.config.stages import PREPARED_AHEAD
from mova_engine.data.dataset import LatentDataset, open_dataset
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.loader import Loader, build_loader
from mova_engine.errors import MovaError
from mova_engine.files.byte_ranges import UnreachableError
from mova_engine.predict.job import PlannedRun, training_job
from mova_engine.predict.memory_use import memory
from mova_engine.train.batch import BatchBuilder
from mova_engine.train.micro_batch import MicroBatch, Preparer
from mova_engine.train.prefetch import Prefetch
from mova_engine.train.timestep_sampling import draw_noise, draw_step

# Of a step, in the runs here.
MICRO = 2


@pytest.fixture
def on_disk(made_clips, make_cache) -> LatentDataset:
    return open_dataset(made_clips, make_cache(), preload=False)


def preparer(dataset: LatentDataset, **settings) -> Preparer:
    loader, given = {"batch": BATCH, **settings}, dict.fromkeys(GIVEN, 0.0)
    config = load_config("nano", loader=loader, global_batch_size=MICRO * BATCH, seed=3, diffusion=given)
    build = BatchBuilder(dataset.cache.empty_text(), torch.device("cpu"), audio_only=False)
    return Preparer(config, 1, MeshShape(), 0, build)


def prefetch(loader: Loader, count: int, first: int = 0) -> Prefetch:
    return Prefetch(loader, preparer(loader.dataset), first, count, get_backend("cpu"))


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [x for each in value for x in tensors(each)]
    if dataclasses.is_dataclass(value):
        return [x for field in dataclasses.fields(value) for x in tensors(getattr(value, field.name))]
    return []


def assert_same(one: MicroBatch, other: MicroBatch) -> None:
    assert (one.step, one.clips.ids) == (other.step, other.clips.ids)
    ours, theirs = tensors(one), tensors(other)
    assert len(ours) == len(theirs) > 10 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def wait_until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_prepared_ahead_is_what_a_step_would_prepare(on_disk, workers):
    """Also what a step draws itself, from its number alone."""
    prepare = preparer(on_disk, silent_audio="mask")
    loader = build_loader(on_disk, BATCH, seed=3)
    expected = [prepare(number, batch) for number, batch in zip(range(5), loader, strict=False)]
    ahead = Prefetch(build_loader(on_disk, BATCH, seed=3, workers=workers), prepare, 0, 5, get_backend("cpu"))
    with ahead:
        found = list(ahead)
    assert len(found) == 5 and [micro.step for micro in found] == [0, 0, 1, 1, 2]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    draw = draw_step(load_config("nano").diffusion, 1, 3, 1, MICRO * BATCH)
    assert torch.equal(found[3].draw.times.video_timestep, draw.times.video_timestep[BATCH:])
    noise = draw_noise(found[3].clips.noise_shapes(), 3, 1, BATCH, BATCH)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[3].noise, noise, strict=True))
    assert found[3].heard is not None and list(found[3].heard.shape) == [BATCH, 1]


def test_only_what_is_taken_counts_and_no_more_than_is_needed_is_prepared(on_disk, monkeypatch):
    read: list[int] = []
    right = LatentDataset.batch
    monkeypatch.setattr(LatentDataset, "batch", lambda self, indices: read.append(1) or right(self, indices))
    loader = build_loader(on_disk, BATCH, seed=3)
    with prefetch(loader, 100) as ahead:
        ahead.settle()
        assert (len(read), loader.position) == (PREPARED_AHEAD, 0)
        taken = [next(ahead) for _ in range(3)]
        ahead.settle()
        assert (len(read), loader.position) == (3 + PREPARED_AHEAD, 3 * BATCH)
        saved = loader.state_dict()
    resumed = build_loader(on_disk, BATCH, seed=3)
    resumed.load_state_dict(saved)
    with prefetch(resumed, 4, first=3) as ahead:
        following = next(ahead)
        ahead.settle()
        assert list(ahead) == [], "the run has four micro-batches"
    prepare = preparer(on_disk)
    loader = build_loader(on_disk, BATCH, seed=3)
    for number, (micro, batch) in enumerate(zip([*taken, following], loader, strict=False)):
        assert_same(micro, prepare(number, batch))


def test_what_waits_on_the_device_is_planned(made_clips, make_cache):
    model = replace(get_preset("nano"), clip=CLIP)
    text = build_text_encoder(model.text_encoder, tokens=model.text_tokens, dim=model.video.text_dim)
    dataset = open_dataset(made_clips, make_cache(text=text), preload=False)
    micro = preparer(dataset)(0, dataset.batch(range(BATCH)))
    clips = micro.clips
    kept = (clips.audio, clips.text, clips.video, clips.image, *micro.noise)
    planned = memory(PlannedRun(training_job(load_config("nano", loader={"batch": BATCH}), model)))
    taken = sum(x.numel() * x.element_size() for x in kept if x is not None)
    assert planned.device["clips prepared ahead"] == PREPARED_AHEAD * taken


def test_an_error_of_the_thread_is_raised_where_its_batch_would_be_taken(on_disk, monkeypatch):
    calls: list[int] = []
    right = LatentDataset.batch

    def batch(self: LatentDataset, indices):
        calls.append(1)
        if len(calls) == 3:
            raise UnreachableError("https://host/a.tar does not answer")
        return right(self, indices)

    monkeypatch.setattr(LatentDataset, "batch", batch)
    loader = build_loader(on_disk, BATCH)
    with pytest.raises(MovaError, match=r"^https://host/a.tar does not answer$"), prefetch(loader, 100) as ahead:
        ahead.settle()
        wait_until(lambda: len(calls) >= PREPARED_AHEAD)
        assert next(ahead).step == 0 and next(ahead).step == 0
        assert loader.position == 2 * BATCH
        next(ahead)
    assert loader.position == 2 * BATCH


def test_no_thread_is_left_after_the_run_nor_after_an_error(on_disk):
    before = set(threading.enumerate())
    for error in (None, KeyboardInterrupt):
        try:
            with prefetch(build_loader(on_disk, BATCH), 100) as ahead:
                next(ahead)
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            assert error is not None
        assert set(threading.enumerate()) <= before


def test_a_step_does_not_wait_for_clips_that_are_encoded(on_disk, monkeypatch):
    """Reading takes 50 ms here, a step more: waiting is left to the first."""
    right = LatentCache.get

    def slow(cache: LatentCache, entry):
        time.sleep(0.05 / BATCH)
        return right(cache, entry)

    monkeypatch.setattr(LatentCache, "get", slow)
    waits = []
    with prefetch(build_loader(on_disk, BATCH), 6) as ahead:
        for _ in range(6):
            asked = time.perf_counter()
            next(ahead)
            waits.append(time.perf_counter() - asked)
            ahead.settle()  # the step
    assert waits[0] > 0.04 and sorted(waits[1:])[2] < 0.01
