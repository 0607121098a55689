"""The dual-tower forward: the one forward of training and sampling alike.

Layer i: bridge i where there is one, then block i of the video tower and block i of the audio tower; the longer tower's
remaining blocks follow alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mova_engine.errors import MovaError
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.models.bridge import Bridge
from mova_engine.models.layers import Stream
from mova_engine.models.tower import Tower, TowerInputs
from mova_engine.models.video_dit import VideoDiT

Trace = Callable[[str, Tensor], None]
CHECKPOINTING = ("none", "full")


def dual_tower_forward(
    video_dit: VideoDiT,
    audio_dit: AudioDiT,
    bridge: Bridge | None,
    video_input: Tensor,
    audio_latents: Tensor,
    context: Tensor,
    video_timestep: Tensor,
    audio_timestep: Tensor,
    *,
    fps: float = 24.0,
    audio_context: Tensor | None = None,
    bridge_scale: tuple[float, float] = (1.0, 1.0),
    checkpointing: str = "none",
    trace: Trace | None = None,
) -> tuple[Tensor, Tensor]:
    """Predict both velocities (or what the network was trained to predict).

    video_input [b, 36, t, h, w]: noisy latents, mask and condition; audio_latents [b, 128, l]; context [b, n, text_dim]
    (audio_context: another text for the audio tower). Timesteps [b] or [1], float32, on the 0..1000 scale, best on
    the CPU: their embedding starts there in float64, which not every device has.
    bridge None: no bridge layer in either direction. bridge_scale: (audio to video, video to audio).
    checkpointing "full" recomputes each block in the backward. trace(name, tensor) receives intermediate states.
    Returns ([b, 16, t, h, w], [b, 128, l]) in the towers' dtype. Raises MovaError for shapes that do not fit.
    """
    if checkpointing not in CHECKPOINTING:
        raise MovaError(f"checkpointing must be one of {', '.join(CHECKPOINTING)}, got '{checkpointing}'")
    if video_input.shape[0] != audio_latents.shape[0]:
        raise MovaError(f"video has batch {video_input.shape[0]} but audio has batch {audio_latents.shape[0]}")
    video, video_in = video_dit.embed(video_input, video_timestep, context)
    audio, audio_in = audio_dit.embed(
        audio_latents, audio_timestep, context if audio_context is None else audio_context
    )
    bridged = frozenset(bridge.config.layers) if bridge is not None else frozenset()
    rope = bridge.rope(video_in.grid, audio_in.grid[0], fps, video_input.device) if bridge is not None else None
    settle = trace is not None

    for layer in range(max(len(video_dit.blocks), len(audio_dit.blocks))):
        if layer in bridged:
            video, audio = bridge(
                layer, video, audio, rope, video_in.grid, bridge_scale, _scoped(trace, f"bridge{layer}.")
            )
            if settle:
                video, audio = Stream(video.settle(video_dit.ops)), Stream(audio.settle(audio_dit.ops))
                trace(f"bridge{layer}.visual", video.x), trace(f"bridge{layer}.audio", audio.x)
        if layer < len(video_dit.blocks):
            video = _run(video_dit, layer, video, video_in, checkpointing, _scoped(trace, f"visual.block{layer}."))
        if layer < len(audio_dit.blocks):
            audio = _run(audio_dit, layer, audio, audio_in, checkpointing, _scoped(trace, f"audio.block{layer}."))
    return video_dit.finish(video, video_in), audio_dit.finish(audio, audio_in)


def _scoped(trace: Trace | None, prefix: str) -> Trace | None:
    return None if trace is None else lambda name, x: trace(prefix + name, x)


def _run(
    tower: Tower, layer: int, stream: Stream, inputs: TowerInputs, checkpointing: str, trace: Trace | None
) -> Stream:
    if trace is not None:
        out = Stream(tower.run_block(layer, stream, inputs, trace).settle(tower.ops))
        trace("out", out.x)
        return out
    if checkpointing == "full" and torch.is_grad_enabled():
        # Settled first: a block then keeps one activation for its recomputation instead of a pending pair.
        settled = Stream(stream.settle(tower.ops))
        return checkpoint(tower.run_block, layer, settled, inputs, use_reentrant=False)
    return tower.run_block(layer, stream, inputs)
