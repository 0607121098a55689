"""Adapters that are switched on and off in an open pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rows_alone import rows_are_alone
from safetensors.torch import load_file

from mova_engine.adapters.lora import adapted_layers, add_lora, remove_lora, save_lora
from mova_engine.adapters.reading import read_adapter
from mova_engine.adapters.writing import write_adapter
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_mova
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.memory import MemoryConfig
from mova_engine.errors import MovaError
from mova_engine.inference.pipeline import load_pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.memory.quantise_folder import quantise_folder
from mova_engine.models.clip_updates import ClipUpdates, Update


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture
def styles(complete, ops, files):
    """Two files of adapters, of rank 2 on some layers and of rank 8 on others; alpha is twice the rank."""
    mova = load_mova(complete, ops, device="cpu").requires_grad_(False)
    for name, rank, targets in (("small", 2, ("q", "ffn.0")), ("large", 8, ("q", "v"))):
        add_lora(mova, targets, rank, 2.0 * rank, torch.Generator().manual_seed(rank))
        for layer in adapted_layers(mova).values():
            torch.nn.init.normal_(layer.lora_B.weight, std=0.1, generator=torch.Generator().manual_seed(rank))
        if not (files / f"{name}.safetensors").exists():
            save_lora(mova, files / f"{name}.safetensors")
        remove_lora(mova)
    return {name: files / f"{name}.safetensors" for name in ("small", "large")}


def opened(folder, lora=(), **memory):
    memory = MemoryConfig(**memory)
    return load_pipeline(folder, get_backend("cpu"), dtype=torch.float32, memory=memory, lora=lora)


def clip(pipeline):
    made = next(pipeline.generate([Request("ball", 1)], SampleSettings(2)))
    return made.video, made.audio


def same(one, other):
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def near(one, other):
    """But for the rounding of sums over a rank that is filled up with zeros."""
    video, audio = (np.abs(x.astype(np.float64) - y).max() for x, y in zip(one, other, strict=True))
    return video <= 1 and audio <= 1e-6


@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"weights": "files"},
        pytest.param({"idle": "files"}, marks=pytest.mark.long),
        pytest.param({"expert": "host"}, marks=pytest.mark.long),
        pytest.param({"idle": "device"}, marks=pytest.mark.long),
    ],
)
def test_a_switched_adapter_is_that_which_a_pipeline_is_opened_with(complete, styles, memory):
    """Strength times alpha / rank is 1 and 0.5, which B takes without rounding."""
    plain = clip(opened(complete, **memory))
    expected = {
        name: clip(opened(complete, [AdapterSpec(path, strength=strength)], **memory))
        for (name, path), strength in zip(styles.items(), (0.5, 0.25), strict=True)
    }
    assert not near(expected["small"], expected["large"]) and not near(expected["small"], plain)
    pipeline = opened(complete, [AdapterSpec(styles["small"], strength=0.5)], **memory)
    assert pipeline.adapters.strengths == {"small": 0.5} and same(clip(pipeline), expected["small"])
    pipeline.adapters.add("large", styles["large"])
    for strengths, wanted in (
        ({}, plain),
        ({"large": 0.25}, expected["large"]),
        ({"small": 0.5}, expected["small"]),
        ({"small": 0.5, "large": 0.25}, None),
        ({"large": 0.0}, plain),
    ):
        pipeline.adapters.set(strengths)
        found = clip(pipeline)
        assert wanted is None or near(found, wanted), strengths
        assert wanted is not plain or same(found, plain)
        assert wanted is not None or not any(near(found, each) for each in (plain, *expected.values()))
    pipeline.adapters.set({"small": 0.5})
    pipeline.adapters.remove("small")
    assert pipeline.adapters.strengths == {"large": 0.0} and same(clip(pipeline), plain)


def test_switching_takes_no_memory_where_there_is_room_and_changes_no_shape(complete, styles):
    pipeline = opened(complete)
    clip(pipeline)
    pipeline.adapters.add("small", styles["small"])
    pipeline.adapters.add("large", styles["large"])
    pipeline.adapters.set({"small": 1.0, "large": 1.0}, rank=16)

    def held():
        layers = adapted_layers(pipeline.mova)
        return {
            name: (x.lora_A.weight.data_ptr(), tuple(x.lora_A.weight.shape), x.lora_scale) for name, x in layers.items()
        }

    before = held()
    assert {shape[0] for _, shape, _ in before.values()} == {16}
    for strengths in ({"small": 0.3}, {"large": -1.0}, {"large": 0.7, "small": 2.0}):
        pipeline.adapters.set(strengths)
        assert held() == before


def test_what_cannot_be_switched_is_said(complete, styles):
    pipeline = opened(complete, [AdapterSpec(styles["small"]), AdapterSpec(styles["small"], strength=0.5)])
    adapters = pipeline.adapters
    assert adapters.strengths == {"small": 1.0, "small-2": 0.5}
    for action, message in (
        (lambda: adapters.set({"smal": 1.0}), "unknown adapter 'smal'. Did you mean 'small'"),
        (lambda: adapters.set({"small": float("nan")}), "must be a finite number"),
        (lambda: adapters.add("small", styles["large"]), "already"),
        (lambda: adapters.remove("none"), "Known: small, small-2"),
        (lambda: adapters.add("other", styles["large"].with_name("nowhere.safetensors")), "nowhere"),
    ):
        with pytest.raises(MovaError, match=message):
            action()
    assert adapters.strengths == {"small": 1.0, "small-2": 0.5}


def test_adapters_that_change_weights_are_neither_added_nor_left_behind(complete, styles, files):
    """A file with a full difference beside low-rank updates: part of it could be switched, the rest not."""
    mixed = files / "mixed" / "high_noise.safetensors"
    adapter = read_adapter(styles["small"])
    bias = "video_dit.blocks.0.ffn.0.bias"
    deltas = {
        bias: torch.ones(
            load_file(complete / "video_dit" / "diffusion_pytorch_model.safetensors")[
                bias.removeprefix("video_dit.")
            ].shape
        )
    }
    if not mixed.exists():
        layers = {name: pair for name, pair in adapter.layers.items() if name.startswith("video_dit.")}
        write_adapter(replace(adapter, layers=layers, deltas=deltas), mixed.parent, "lightx2v")
    with pytest.raises(MovaError, match="cannot be switched"):
        opened(complete).adapters.add("mixed", mixed, part="high")
    pipeline = opened(complete, [AdapterSpec(mixed, "high"), AdapterSpec(styles["large"])])
    before = clip(pipeline)
    for change in (
        lambda: pipeline.adapters.set({}),
        lambda: pipeline.adapters.add("small", styles["small"]),
        lambda: pipeline.adapters.remove("large"),
    ):
        with pytest.raises(MovaError, match="high_noise.safetensors, which changes weights themselves"):
            change()
    assert same(clip(pipeline), before)


def test_adapters_are_not_switched_amid_a_clip(complete, styles):
    pipeline = opened(complete, [AdapterSpec(styles["small"])])
    requests, settings = [Request("ball", 1)], SampleSettings(2)
    with pytest.raises(MovaError, match="between clips"):
        list(pipeline.generate(requests, settings, on_step=lambda step: pipeline.adapters.set({})))


@pytest.mark.parametrize("memory", [{}, pytest.param({"weights": "files"}, marks=pytest.mark.long)])
def test_clips_of_a_batch_have_strengths_of_their_own(complete, styles, memory):
    """Each clip is, to the bit, what it is alone with its adapters, by whichever way they are set; by part too."""
    alike = same if rows_are_alone() else near
    pipeline = opened(complete, **memory)
    for name, path in styles.items():
        pipeline.adapters.add(name, path)
    chosen = [
        {"small": 0.5},
        {},
        {"large": {"audio": 0.25, "high": 1.0}},
        {"small": 0.5},
        {"small": 1.0, "large": 0.25},
    ]
    settings = SampleSettings(2)

    def made(adapters, batch):
        requests = [Request("ball", seed, adapters=each) for seed, each in adapters]
        return [(x.video, x.audio) for x in pipeline.generate(requests, settings, batch=batch)]

    together = made(list(enumerate(chosen)), 5)
    for seed, strengths in enumerate(chosen):
        assert alike(together[seed], made([(seed, strengths)], 1)[0]), strengths
        pipeline.adapters.set({})
        pipeline.adapters.set(strengths)
        assert alike(together[seed], made([(seed, None)], 1)[0]), strengths
    # Requests without take those that are set, and the next batch has nothing left of this one.
    pipeline.adapters.set({})
    pipeline.adapters.set({"large": 0.25})
    mixed = made([(0, None), (0, {})], 2)
    assert alike(mixed[0], made([(0, {"large": 0.25})], 1)[0]) and not near(*mixed)
    assert alike(mixed[0], made([(0, None)], 1)[0])


@pytest.mark.parametrize("name", ["int8", pytest.param("nf4", marks=pytest.mark.long)])
def test_clips_of_a_batch_have_strengths_of_their_own_on_quantised_weights(complete, styles, tmp_path, name):
    quantise_folder(complete, tmp_path / name, name)
    pipeline = load_pipeline(tmp_path / name, get_backend("cpu"))
    pipeline.adapters.add("small", styles["small"])
    chosen, settings = [{"small": 0.5}, {}, {"small": {"bridge": 1.0, "low": 0.5}}], SampleSettings(2)
    requests = [Request("ball", seed, adapters=each) for seed, each in enumerate(chosen)]
    together = list(pipeline.generate(requests, settings, batch=3))
    for request, clip_of_all in zip(requests, together, strict=True):
        alone = next(pipeline.generate([request], settings))
        assert same((clip_of_all.video, clip_of_all.audio), (alone.video, alone.audio)), request.adapters


def test_strengths_of_clips_that_cannot_be_used_are_said(complete, styles):
    pipeline = opened(complete, [AdapterSpec(styles["small"])])
    for adapters, says in (
        ({"smal": 1.0}, "unknown adapter 'smal'. Did you mean 'small'"),
        ({"small": float("inf")}, "must be a finite number"),
        ({"small": {"hihg": 1.0}}, "unknown part 'hihg'. Did you mean 'high'"),
        ([{"small": 1.0}], "adapters are given for 1 clip, of 2 prompts"),
    ):
        with pytest.raises(MovaError, match=says):
            pipeline(["ball", "cat"], adapters=adapters)
    with pytest.raises(MovaError, match="unknown part 'hihg'"):
        pipeline.adapters.set({"small": {"hihg": 1.0}})
    pipeline.adapters = None
    with pytest.raises(MovaError, match="takes no adapters"):
        pipeline("ball", adapters={"small": 1.0})


def test_a_layer_that_works_on_all_clips_alike_is_refused():
    updates = ClipUpdates([(None, (0, 2)), (Update(torch.ones(1, 4), torch.ones(4, 1), 1.0), (1,))])
    with pytest.raises(MovaError, match="4 rows for 3 clips"):
        updates.product(torch.ones(4, 2, 4), lambda x, update: x)
    rows = updates.product(torch.ones(6, 2, 4), lambda x, update: x if update is None else 2 * x)
    assert rows[:, 0, 0].tolist() == [1, 2, 1, 1, 2, 1]
