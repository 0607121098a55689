"""The dual-tower forward: the one forward of training and sampling alike.

Layer i: bridge i where there is one, then block i of the video tower and block i of the audio tower; the longer tower's
remaining blocks follow alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mova_engine.errors import MovaError
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.models.bridge import Bridge
from mova_engine.models.layers import Rope, Stream
from mova_engine.models.offload import HostCopies
from mova_engine.models.sharding import WHOLE, Sharding
from mova_engine.models.tower import Tower, TowerInputs
from mova_engine.models.video_dit import VideoDiT
from mova_engine.ops.recall import POLICIES, Recall

Trace = Callable[[str, Tensor], None]
CHECKPOINTING = tuple(POLICIES)


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
    offload: bool = False,
    sharding: Sharding = WHOLE,
    trace: Trace | None = None,
) -> tuple[Tensor, Tensor]:
    """Predict both velocities (or what the network was trained to predict).

    video_input [b, 36, t, h, w]: noisy latents, mask and condition; audio_latents [b, 128, l]; context [b, n, text_dim]
    (audio_context: another text for the audio tower). Timesteps [b] or [1], float32, on the 0..1000 scale, best on
    the CPU: their embedding starts there in float64, which not every device has.
    bridge None: no bridge layer in either direction. bridge_scale: (audio to video, video to audio).
    checkpointing: what the backward computes again. "none": nothing. "full": every layer, from its inputs. "selective":
    the same without video self-attention and without exchanges between processes. "out": as selective, but q, k and v
    of shared clips are exchanged again. offload: layers' inputs wait for the backward in the host's memory.
    sharding: which video tokens are this process's own; all inputs are whole. trace(name, tensor) receives states.
    Returns ([b, 16, t, h, w], [b, 128, l]) in the towers' dtype. Raises MovaError for shapes that do not fit.
    """
    if checkpointing not in CHECKPOINTING:
        raise MovaError(f"checkpointing must be one of {', '.join(CHECKPOINTING)}, got '{checkpointing}'")
    if offload and checkpointing == "none":
        raise MovaError("offload moves the inputs of checkpointed layers: choose checkpointing full, selective or out")
    if video_input.shape[0] != audio_latents.shape[0]:
        raise MovaError(f"video has batch {video_input.shape[0]} but audio has batch {audio_latents.shape[0]}")
    if sharding.size > 1 and bridge is not None and bridge.config.pooled_adaln:
        raise MovaError("the bridge's pooled variant needs all video tokens in one process: context_parallel must be 1")
    video, video_in = video_dit.embed(video_input, video_timestep, context, sharding)
    audio, audio_in = audio_dit.embed(
        audio_latents, audio_timestep, context if audio_context is None else audio_context
    )
    rope = None
    if bridge is not None:
        rope = bridge.rope(video_in.grid, audio_in.grid[0], fps, video_input.device, sharding)
    layers = _Layers(video_dit, audio_dit, bridge, video_in, audio_in, rope, bridge_scale, trace)
    host = HostCopies() if offload and torch.is_grad_enabled() else None
    for layer in range(max(len(video_dit.blocks), len(audio_dit.blocks))):
        if checkpointing == "none" or trace is not None or not torch.is_grad_enabled():
            video, audio = layers.run(layer, video, audio)
        else:
            video, audio = layers.run_checkpointed(layer, video, audio, checkpointing, host)
    return video_dit.finish(video, video_in), audio_dit.finish(audio, audio_in)


@dataclass(frozen=True)
class _Layers:
    """All layers of one forward, with what each needs beside the two streams."""

    video_dit: VideoDiT
    audio_dit: AudioDiT
    bridge: Bridge | None
    video_in: TowerInputs
    audio_in: TowerInputs
    rope: tuple[Rope, Rope] | None
    bridge_scale: tuple[float, float]
    trace: Trace | None

    def run(self, layer: int, video: Stream, audio: Stream) -> tuple[Stream, Stream]:
        """Bridge, video block, audio block: whichever of them this layer has."""
        with self.video_in.sharding.running(self.video_in.tokens):
            if self.bridge is not None and layer in self.bridge.config.layers:
                video, audio = self._bridge(layer, video, audio)
            if layer < len(self.video_dit.blocks):
                video = self._block("visual", self.video_dit, layer, video, self.video_in)
            if layer < len(self.audio_dit.blocks):
                audio = self._block("audio", self.audio_dit, layer, audio, self.audio_in)
        return video, audio

    def run_checkpointed(
        self, layer: int, video: Stream, audio: Stream, policy: str, host: HostCopies | None
    ) -> tuple[Stream, Stream]:
        """`run`, of which only the inputs and what `policy` keeps stay until the backward recomputes it."""

        # Settled first: a layer then keeps one activation for its recomputation instead of a pending pair.
        states = video.settle(self.video_dit.ops), audio.settle(self.audio_dit.ops)
        recall = Recall(policy)

        def region(video: Tensor, audio: Tensor) -> tuple[Stream, Stream]:
            return self.run(layer, Stream(video), Stream(audio))

        def run() -> tuple[Stream, Stream]:
            return checkpoint(
                region, *states, use_reentrant=False, context_fn=recall.contexts, preserve_rng_state=False
            )

        if host is None:
            return run()
        with host.of(states):
            return run()

    def _bridge(self, layer: int, video: Stream, audio: Stream) -> tuple[Stream, Stream]:
        trace = _scoped(self.trace, f"bridge{layer}.")
        video, audio = self.bridge(layer, video, audio, self.rope, self.video_in.grid, self.bridge_scale, trace)
        if trace is not None:
            video, audio = Stream(video.settle(self.video_dit.ops)), Stream(audio.settle(self.audio_dit.ops))
            trace("visual", video.x), trace("audio", audio.x)
        return video, audio

    def _block(self, name: str, tower: Tower, layer: int, stream: Stream, inputs: TowerInputs) -> Stream:
        trace = _scoped(self.trace, f"{name}.block{layer}.")
        stream = tower.run_block(layer, stream, inputs, trace)
        if trace is not None:
            stream = Stream(stream.settle(tower.ops))
            trace("out", stream.x)
        return stream


def _scoped(trace: Trace | None, prefix: str) -> Trace | None:
    return None if trace is None else lambda name, x: trace(prefix + name, x)
