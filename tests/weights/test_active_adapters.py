"""Adapters that are switched on and off in an open pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mova_engine.adapters.lora import adapted_layers, add_lora, remove_lora, save_lora
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_mova
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.memory import MemoryConfig
from mova_engine.errors import MovaError
from mova_engine.inference.pipeline import SampleSettings, load_pipeline
from mova_engine.inference.requests import Request


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
    "memory", [{}, {"idle": "files"}, {"expert": "host"}, {"weights": "files"}, {"idle": "device"}]
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
    assert replace(pipeline, adapters=None).adapters is None
