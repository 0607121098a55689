"""Sizes: what is derived from them, and what is refused."""

import dataclasses

import pytest

from mova_engine.config.model import BridgeConfig, ClipConfig, VideoDiTConfig, get_preset
from mova_engine.errors import MovaError


@pytest.mark.parametrize(
    ("preset", "video_tokens", "audio_tokens"),
    [("mova-360p", 43120, 403), ("mova-720p", 176400, 403), ("bench-mid", 1280, 50), ("nano", 81, 69)],
)
def test_tokens_of_the_presets(preset, video_tokens, audio_tokens):
    clip = get_preset(preset).clip
    assert (clip.video_tokens, clip.audio_tokens) == (video_tokens, audio_tokens)
    assert clip.audio_samples >= clip.duration * clip.sample_rate


def test_the_bench_grid_is_5x16x16():
    assert get_preset("bench-mid").clip.latent_shape == (5, 32, 32)


def test_an_unknown_preset_suggests():
    with pytest.raises(MovaError, match="unknown model 'mova-350p'. Did you mean 'mova-360p'"):
        get_preset("mova-350p")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClipConfig(frames=32, height=48, width=48), r"frames must be 4n\+1, got 32"),
        (lambda: ClipConfig(frames=33, height=40, width=48), "multiples of 16"),
        (lambda: ClipConfig(frames=33, height=48, width=48, fps=0), "fps must be positive"),
        (lambda: VideoDiTConfig(dim=100, ffn_dim=8, num_heads=3, num_layers=1), "not a multiple of num_heads 3"),
        (lambda: VideoDiTConfig(dim=6, ffn_dim=8, num_heads=2, num_layers=1), "head dim 3 is odd"),
        (lambda: VideoDiTConfig(dim=8, ffn_dim=8, num_heads=2, num_layers=0), "num_layers must be positive"),
        (lambda: BridgeConfig(3, 3, 128, 128, interaction_strategy="ful"), "Did you mean 'full'"),
        (lambda: BridgeConfig(3, 3, 128, 128, interaction_layers=(0,)), "needs 'custom'"),
        (lambda: BridgeConfig(3, 2, 128, 128, interaction_strategy="custom", interaction_layers=(2,)), "outside 0..1"),
        (lambda: BridgeConfig(3, 3, 96, 128), "visual_hidden_dim 96 is not a multiple of head_dim 128"),
        (lambda: BridgeConfig(3, 3, 128, 384, pooled_adaln=True), "over 3 heads, which does not divide it"),
        (lambda: dataclasses.replace(get_preset("nano"), experts=3), "experts must be 1 or 2"),
        (
            lambda: dataclasses.replace(get_preset("nano"), bridge=get_preset("mova-360p").bridge),
            "bridge.visual_layers is 40 but the tower has 3",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused(build, message):
    with pytest.raises(MovaError, match=message):
        build()
