"""Sizes of everything: towers, bridge, clip, and the named presets. Standard library only.

Field names of the tower and bridge configurations are those of the released checkpoints' `config.json`.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from mova_engine.errors import MovaError, suggest

# Names of a model's parts, as of the checkpoint's folders.
COMPONENTS = ("video_dit", "video_dit_2", "audio_dit", "dual_tower_bridge")
# Those that one forward runs: one video expert at a time.
ACTIVE_COMPONENTS = ("video_dit", "audio_dit", "dual_tower_bridge")
STRATEGIES = ("full", "shallow_focus", "distributed", "progressive", "custom")
# How evaluations with and without text and bridge are combined: see diffusion/guidance.py.
GUIDANCE_FORMS = ("none", "text", "text_bridge", "dual")
# The reference's own choice when strategy "custom" comes without a list.
DEFAULT_CUSTOM_LAYERS = (0, 2, 4, 6, 8, 12, 16, 20)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MovaError(message)


@dataclass(frozen=True)
class TowerConfig:
    """One diffusion transformer (DiT): `dim` = num_heads * head_dim, `ffn_dim` the feed-forward width."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    out_dim: int
    patch_size: tuple[int, ...]
    text_dim: int = 4096
    freq_dim: int = 256
    eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim", "freq_dim")
        who = type(self).__name__
        for name in sizes:
            _require(getattr(self, name) > 0, f"{who}: {name} must be positive, got {getattr(self, name)}")
        multiple = self.dim % self.num_heads == 0
        _require(multiple, f"{who}: dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        _require(self.head_dim % 2 == 0, f"{who}: head dim {self.head_dim} is odd; rotary embedding needs pairs")
        _require(self.freq_dim % 2 == 0, f"{who}: freq_dim {self.freq_dim} is odd; the sinusoid needs pairs")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class VideoDiTConfig(TowerConfig):
    """A video expert. `in_dim` 36 = 16 noisy latent + 4 mask + 16 condition channels."""

    in_dim: int = 36
    out_dim: int = 16
    patch_size: tuple[int, ...] = (1, 2, 2)


@dataclass(frozen=True)
class AudioDiTConfig(TowerConfig):
    """The audio tower, over latents of 128 channels at 50 a second."""

    in_dim: int = 128
    out_dim: int = 128
    patch_size: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class BridgeConfig:
    """Cross-attention between the towers, in both directions, before each of `layers`.

    audio_fps: audio tokens per second. interaction_layers: the list for strategy "custom" (default: the reference's).
    aligned: cross RoPE places video frames on the audio's time axis; False (frame i at position i) is for ablation.
    """

    visual_layers: int
    audio_layers: int
    visual_hidden_dim: int
    audio_hidden_dim: int
    audio_fps: float = 50.0
    head_dim: int = 128
    interaction_strategy: str = "full"
    apply_cross_rope: bool = True
    apply_first_frame_bias_in_rope: bool = False
    trainable_condition_scale: bool = False
    pooled_adaln: bool = False
    interaction_layers: tuple[int, ...] | None = None
    aligned: bool = True

    def __post_init__(self) -> None:
        strategy = self.interaction_strategy
        _require(
            strategy in STRATEGIES,
            f"unknown interaction_strategy '{strategy}'.{suggest(strategy, STRATEGIES)} Known: {', '.join(STRATEGIES)}",
        )
        _require(
            self.interaction_layers is None or strategy == "custom",
            f"interaction_layers is given but interaction_strategy is '{strategy}'; a layer list needs 'custom'",
        )
        for layer in self.interaction_layers or ():
            _require(0 <= layer < self._shorter, f"interaction_layers: {layer} is outside 0..{self._shorter - 1}")
        for name in ("visual_hidden_dim", "audio_hidden_dim"):
            dim = getattr(self, name)
            _require(dim % self.head_dim == 0, f"bridge: {name} {dim} is not a multiple of head_dim {self.head_dim}")
        if self.pooled_adaln:
            heads = self.audio_hidden_dim // self.head_dim
            _require(
                self.visual_hidden_dim % heads == 0,
                f"bridge: pooled_adaln splits visual_hidden_dim {self.visual_hidden_dim} over {heads} heads, "
                "which does not divide it; use pooled_adaln=False",
            )

    @property
    def _shorter(self) -> int:
        return min(self.visual_layers, self.audio_layers)

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers that the bridge runs before, ascending."""
        n = self._shorter
        if self.interaction_strategy == "full":
            return tuple(range(n))
        if self.interaction_strategy == "shallow_focus":
            return tuple(range(min(10, n // 3)))
        if self.interaction_strategy == "distributed":
            return tuple(range(0, n, 3))
        if self.interaction_strategy == "progressive":  # dense at first, then every third
            return tuple(range(min(8, n))) + tuple(range(8, n, 3))
        chosen = DEFAULT_CUSTOM_LAYERS if self.interaction_layers is None else self.interaction_layers
        return tuple(sorted({layer for layer in chosen if layer < n}))


@dataclass(frozen=True)
class ClipConfig:
    """A clip's shape in pixels and samples, and in latents of the codecs (video stride 4x8x8, audio hop in samples)."""

    frames: int
    height: int
    width: int
    fps: float = 24.0
    sample_rate: int = 48000
    hop: int = 960
    video_stride: tuple[int, int, int] = (4, 8, 8)

    def __post_init__(self) -> None:
        t, h, w = self.video_stride
        _require(self.frames >= 1 and (self.frames - 1) % t == 0, f"frames must be {t}n+1, got {self.frames}")
        # Two more: the towers' patches are 2x2 latents.
        _require(
            self.height % (2 * h) == 0 and self.width % (2 * w) == 0 and self.height > 0 and self.width > 0,
            f"height and width must be positive multiples of {2 * h} and {2 * w}, got {self.height}x{self.width}",
        )
        _require(0 < self.fps < math.inf, f"fps must be positive, got {self.fps}")

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.fps

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(frames, height, width) of the video latents."""
        t, h, w = self.video_stride
        return (self.frames - 1) // t + 1, self.height // h, self.width // w

    @property
    def video_tokens(self) -> int:
        """Tokens of the video tower (patches of 1x2x2 latents)."""
        t, h, w = self.latent_shape
        return t * (h // 2) * (w // 2)

    @property
    def audio_tokens(self) -> int:
        """Audio latents that cover the clip's duration."""
        # Rounded first: 24 fps x whole seconds must not gain a token from a floating-point crumb.
        return math.ceil(round(self.duration * self.sample_rate / self.hop, 6))

    @property
    def audio_samples(self) -> int:
        """Samples per clip, padded to whole latents."""
        return self.audio_tokens * self.hop


@dataclass(frozen=True)
class SamplingConfig:
    """What a model is sampled with unless told otherwise: Euler steps, and guidance by one of GUIDANCE_FORMS."""

    steps: int = 50
    guidance: str = "text"

    def __post_init__(self) -> None:
        _require(type(self.steps) is int and self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        known = ", ".join(GUIDANCE_FORMS)
        _require(
            self.guidance in GUIDANCE_FORMS,
            f"unknown guidance '{self.guidance}'.{suggest(str(self.guidance), GUIDANCE_FORMS)} Known: {known}",
        )


@dataclass(frozen=True)
class MovaConfig:
    """A whole model: two towers, the bridge, the number of video experts, the kinds of codecs and text encoder, and
    the sampling defaults.
    """

    name: str
    video: VideoDiTConfig
    audio: AudioDiTConfig
    bridge: BridgeConfig
    clip: ClipConfig
    experts: int = 2
    text_tokens: int = 512
    video_codec: str = "wan"
    audio_codec: str = "dac"
    text_encoder: str = "umt5"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        _require(self.experts in (1, 2), f"experts must be 1 or 2, got {self.experts}")
        pairs = (
            ("visual_layers", self.bridge.visual_layers, self.video.num_layers),
            ("audio_layers", self.bridge.audio_layers, self.audio.num_layers),
            ("visual_hidden_dim", self.bridge.visual_hidden_dim, self.video.dim),
            ("audio_hidden_dim", self.bridge.audio_hidden_dim, self.audio.dim),
        )
        for name, bridge, tower in pairs:
            _require(bridge == tower, f"{self.name}: bridge.{name} is {bridge} but the tower has {tower}")


def _model(
    name: str,
    video: VideoDiTConfig,
    audio: AudioDiTConfig,
    clip: ClipConfig,
    *,
    bridge_head_dim: int = 128,
    **fields: Any,
) -> MovaConfig:
    bridge = BridgeConfig(video.num_layers, audio.num_layers, video.dim, audio.dim, head_dim=bridge_head_dim)
    return MovaConfig(name, video, audio, bridge, clip, **fields)


_VIDEO_14B = VideoDiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
_AUDIO_1B = AudioDiTConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
_360P = ClipConfig(frames=193, height=352, width=640)
_EMBEDDED: dict[str, Any] = {"video_codec": "dct", "audio_codec": "mdct", "text_encoder": "bytes"}
_MOVA_360P = _model("mova-360p", _VIDEO_14B, _AUDIO_1B, _360P)

PRESETS: dict[str, MovaConfig] = {
    config.name: config
    for config in (
        _MOVA_360P,
        replace(_MOVA_360P, name="mova-720p", clip=replace(_360P, height=720, width=1280)),
        # For measuring on a CPU: MOVA's proportions, a grid of 5x16x16 tokens and one second of sound.
        _model(
            "bench-mid",
            VideoDiTConfig(dim=768, ffn_dim=3072, num_heads=6, num_layers=6, text_dim=512),
            AudioDiTConfig(dim=384, ffn_dim=1536, num_heads=3, num_layers=4, text_dim=512),
            ClipConfig(frames=17, height=256, width=256, fps=17.0),
            experts=1,
            text_tokens=64,
            **_EMBEDDED,
        ),
        # The laptop default: learns in minutes on two CPU cores.
        _model(
            "nano",
            VideoDiTConfig(dim=96, ffn_dim=288, num_heads=2, num_layers=3, text_dim=64),
            AudioDiTConfig(dim=96, ffn_dim=288, num_heads=2, num_layers=3, text_dim=64),
            ClipConfig(frames=33, height=48, width=48),
            bridge_head_dim=48,
            experts=1,
            text_tokens=12,
            # It is trained without text dropout, which guidance by text needs.
            sampling=SamplingConfig(steps=16, guidance="none"),
            **_EMBEDDED,
        ),
    )
}


def get_preset(name: str) -> MovaConfig:
    """Return the named model size; MovaError with the nearest name when there is none."""
    if name not in PRESETS:
        raise MovaError(f"unknown model '{name}'.{suggest(name, PRESETS)} Known: {', '.join(PRESETS)}")
    return PRESETS[name]
