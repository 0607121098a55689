"""Parameter counts and FLOPs equal the published table, digit for digit, and the model that is built."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mova_engine.backend import get_backend
from mova_engine.config.model import (
    PRESETS,
    AudioDiTConfig,
    BridgeConfig,
    ClipConfig,
    MovaConfig,
    VideoDiTConfig,
    get_preset,
)
from mova_engine.errors import MovaError
from mova_engine.models.modality import Modality, modalities
from mova_engine.models.mova import Mova, dual_tower_forward
from mova_engine.ops import bind
from mova_engine.predict.flops import active_parameters, forward_flops, parameter_counts, training_flops

# What a model of MOVA's shapes costs, as published: (part, text of 360p, text of 720p), forward, TFLOP.
FORWARD = [
    ("video self-attention", "1523", "25491"),
    ("video q,k,v,o", "362", "1480"),
    ("video FFN", "488", "1998"),
    ("video text cross-attention", "201", "816"),
    ("bridge a2v projections", "136.0", "555.3"),
    ("bridge a2v attention", "10.7", "43.7"),
    ("bridge v2a projections", "40.8", "166.6"),
    ("bridge v2a attention", "3.2", "13.1"),
    ("audio tower", "1.23", "1.23"),
]
# Training, PFLOP per clip: (preset, LoRA rank): model, hardware without / selective / full checkpointing.
TRAINING = {
    ("mova-360p", None): ("8.30", "9.08", "10.32", "11.84"),
    ("mova-360p", 16): ("7.11", "7.88", "9.13", "10.66"),
    ("mova-720p", None): ("91.7", "104.5", "109.6", "135.1"),
    ("mova-720p", 16): ("86.8", "99.6", "104.7", "130.2"),
}


def _digits(value: float, printed: str) -> str:
    return f"{value:.{len(printed.partition('.')[2])}f}"


@pytest.mark.parametrize(("column", "preset", "total"), [(1, "mova-360p", "2.766"), (2, "mova-720p", "30.56")])
def test_forward_table_has_the_published_digits(column, preset, total):
    cost = forward_flops(get_preset(preset))
    for row in FORWARD:
        assert _digits(cost.parts[row[0]] / 1e12, row[column]) == row[column], row[0]
    assert _digits(cost.total / 1e15, total) == total
    assert sum(cost.parts.values()) == cost.total


@pytest.mark.parametrize(("preset", "rank"), TRAINING)
def test_training_table_has_the_published_digits(preset, rank):
    cost = training_flops(get_preset(preset), lora_rank=rank)
    values = (cost.model, cost.hardware, cost.hardware_selective, cost.hardware_full)
    printed = TRAINING[preset, rank]
    assert tuple(_digits(v / 1e15, text) for v, text in zip(values, printed, strict=True)) == printed


def test_released_sizes():
    counts = {name: sum(groups.values()) for name, groups in parameter_counts(get_preset("mova-360p")).items()}
    assert {name: f"{n / 1e9:.3f}" for name, n in counts.items()} == {
        "video_dit": "14.289",
        "audio_dit": "1.419",
        "dual_tower_bridge": "2.660",
    }
    assert f"{active_parameters(get_preset('mova-360p')) / 1e9:.2f}" == "18.37"


def _tiny(**bridge) -> MovaConfig:
    video = VideoDiTConfig(dim=48, ffn_dim=80, num_heads=2, num_layers=3, text_dim=20, freq_dim=16)
    audio = AudioDiTConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=20, freq_dim=16)
    bridge = BridgeConfig(3, 2, 48, 48, head_dim=24, **bridge)
    return MovaConfig("tiny", video, audio, bridge, ClipConfig(frames=9, height=32, width=48), text_tokens=7)


def _group(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize(
    "config",
    [*PRESETS.values(), _tiny(pooled_adaln=True), _tiny(interaction_strategy="distributed")],
    ids=[*PRESETS, "pooled", "distributed"],
)
def test_counts_equal_the_model_that_is_built(config):
    model = Mova(config, bind(get_backend("cpu"), "reference"), device="meta")
    for name, groups in parameter_counts(config).items():
        built: dict[str, int] = {}
        for parameter, value in getattr(model, name).named_parameters():
            built[_group(parameter)] = built.get(_group(parameter), 0) + value.numel()
        assert built == groups, name


@pytest.mark.parametrize("components", [("video_dit", "audio_dit", "dual_tower_bridge"), ("video_dit", "audio_dit")])
def test_forward_equals_what_pytorch_counts(components):
    """torch's own counter sees every matrix product of the forward that we run (biases and norms it does not count)."""
    config = _tiny()
    ops = bind(get_backend("cpu"), "reference")
    model = Mova(config, ops, device="cpu")
    clip = config.clip
    bridge = model.dual_tower_bridge if "dual_tower_bridge" in components else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        dual_tower_forward(
            model.video_dit,
            model.audio_dit,
            bridge,
            *modalities(
                torch.randn(1, 36, *clip.latent_shape),
                torch.randn(1, 128, clip.audio_tokens),
                torch.randn(1, config.text_tokens, config.video.text_dim),
                torch.tensor([500.0]),
                torch.tensor([500.0]),
            ),
            fps=clip.fps,
        )
    assert counter.get_total_flops() == forward_flops(config, components).total


def test_training_equals_what_autograd_multiplies():
    """torch's counter on the audio tower, forward and backward, all weights trained."""
    config = _tiny()
    model = Mova(config, bind(get_backend("cpu"), "reference"), device="cpu")
    latents = torch.randn(1, 128, config.clip.audio_tokens)
    text = torch.randn(1, config.text_tokens, config.audio.text_dim)
    with FlopCounterMode(display=False) as counter:
        model.audio_dit(Modality(latents, torch.tensor([500.0]), text)).sum().backward()
    assert counter.get_total_flops() == training_flops(config, components=("audio_dit",)).model


def test_what_is_not_trained_costs_less_and_adapters_cost_little():
    config = get_preset("mova-360p")
    full = training_flops(config)
    bridge_only = training_flops(config, trained=("dual_tower_bridge",))
    frozen = training_flops(config, trained=())
    assert frozen.model < bridge_only.model < full.model
    assert frozen.model < training_flops(config, lora_rank=16).model < 1.005 * frozen.model
    assert forward_flops(config, ("audio_dit",)).total == forward_flops(config).parts["audio tower"]


def test_an_unknown_component_is_named():
    with pytest.raises(MovaError, match="unknown component 'audio_dot'. Did you mean 'audio_dit'"):
        forward_flops(get_preset("nano"), ("audio_dot",))


def test_flops_needs_the_standard_library_only():
    code = "import sys, mova_engine.predict.flops; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_clips_scale_as_they_should():
    config = get_preset("mova-360p")
    half = replace(config, clip=replace(config.clip, frames=97))
    ratio = forward_flops(config).parts["video self-attention"] / forward_flops(half).parts["video self-attention"]
    assert ratio == 49**2 / 25**2
