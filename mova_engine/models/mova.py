"""The whole model: experts, audio tower and bridge, under the checkpoint's component names, and their one forward.

Layer i of the forward: bridge i where there is one, then block i of the video tower and block i of the audio tower;
the longer tower's remaining blocks follow alone. Training and sampling run the same one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mova_engine.config.model import MovaConfig
from mova_engine.errors import MovaError
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.models.bridge import Bridge, VideoRecord
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.models.layers import LayerOptions, NormParameters, ResidualStream, Rope, Trace
from mova_engine.models.modality import Modality
from mova_engine.models.tower import Tower, TowerInputs
from mova_engine.models.video_dit import VideoDiT
from mova_engine.ops import OpTable


class LayerRunner(Protocol):
    """How the layers of one forward are run: at once, or recomputed in the backward, or with weights that come and go.

    The model declares it; implementations that place tensors are in `memory`. An instance serves one forward.
    """

    def run(
        self, layers: "DualTowerLayers", layer: int, video: ResidualStream, audio: ResidualStream
    ) -> tuple[ResidualStream, ResidualStream]:
        """Run layer `layer` (from 0) on the streams of [b, s, d], whatever has to happen before and after it."""
        ...


class DirectRunner:
    """Runs every layer as it is; autograd keeps what the layers save."""

    def run(
        self, layers: "DualTowerLayers", layer: int, video: ResidualStream, audio: ResidualStream
    ) -> tuple[ResidualStream, ResidualStream]:
        return layers.run(layer, video, audio)


DIRECT = DirectRunner()


class LayerSource(Protocol):
    """Brings the weights of a model's layers to the device as they are run: `memory.streaming` has one."""

    def runner(self, expert: int, inner: LayerRunner, together: int = 1) -> LayerRunner:
        """How the layers of `together` forwards through an expert, layer by layer side by side, are run: `inner`, once
        their weights are there.
        """
        ...

    def plan(self, evaluations: Iterable[tuple[int, int]]) -> None:
        """Say what the next forwards go through, so that weights can come ahead: (expert, number of forwards that go
        through its layers side by side).
        """
        ...

    def enter(self, expert: int, layer: int) -> None:
        """Bring the weights of a layer now, for what is not run by a runner."""
        ...

    def free(self) -> None:
        """Give back the device's memory until the next forward."""
        ...


class ForwardInputs(NamedTuple):
    """The inputs of one forward among several. bridge, record: as of `dual_tower_forward`."""

    video: Modality
    audio: Modality
    bridge: bool = True
    record: VideoRecord | None = None


class Mova(nn.Module):
    """`video_dit` (high noise), `video_dit_2` (low noise; None with one expert), `audio_dit`, `dual_tower_bridge`.

    streamed: brings the layers' weights, where they are not on the device all the time; None: they are.
    chunk_rows: tokens of a chunk in which blocks run what they do row by row, see `LayerOptions`.
    """

    streamed: LayerSource | None = None
    chunk_rows: int | None = None

    def __init__(
        self,
        config: MovaConfig,
        ops: OpTable,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.video_dit = VideoDiT(config.video, ops, device, dtype)
        self.video_dit_2 = VideoDiT(config.video, ops, device, dtype) if config.experts == 2 else None
        if self.video_dit_2 is not None:
            # Experts see the same clips.
            self.video_dit_2.tables = self.video_dit.tables
        self.audio_dit = AudioDiT(config.audio, ops, device, dtype)
        self.dual_tower_bridge = Bridge(config.bridge, ops, device, dtype)

    def expert(self, index: int) -> VideoDiT:
        """Video expert 0 (high noise) or 1 (low noise); a model with one expert serves both."""
        if index not in (0, 1):
            raise MovaError(f"expert must be 0 (high noise) or 1 (low noise), got {index}")
        return self.video_dit if index == 0 or self.video_dit_2 is None else self.video_dit_2

    def forward(
        self, video: Modality, audio: Modality, *, expert: int = 0, bridge: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """`dual_tower_forward` with one of the video experts, with the bridge or without; the rest is its."""
        connection = self.dual_tower_bridge if bridge else None
        if self.streamed is not None:
            options["runner"] = self.streamed.runner(expert, options.get("runner", DIRECT))
        options["chunk_rows"] = self.chunk_rows
        return dual_tower_forward(self.expert(expert), self.audio_dit, connection, video, audio, **options)

    def forward_side_by_side(
        self, inputs: Sequence[ForwardInputs], *, expert: int = 0, **options: Any
    ) -> list[tuple[Tensor, Tensor]]:
        """The forwards of several inputs through one expert. Each layer is run for all of them before the next one, so
        that weights that are streamed come once; every forward's residual streams are held meanwhile.
        """
        if self.streamed is not None:
            options["runner"] = self.streamed.runner(expert, options.get("runner", DIRECT), len(inputs))
        options["chunk_rows"] = self.chunk_rows
        passes = [
            DualTowerPass.begin(
                self.expert(expert),
                self.audio_dit,
                self.dual_tower_bridge if each.bridge else None,
                each.video,
                each.audio,
                record=each.record,
                **options,
            )
            for each in inputs
        ]
        for layer in range(passes[0].layer_count):
            for each in passes:
                each.run(layer)
        return [each.finish() for each in passes]

    def forward_audio(
        self,
        audio: Modality,
        record: VideoRecord | None,
        *,
        expert: int = 0,
        fps: float = 24.0,
        bridge_scale: float = 1.0,
        sharding: Sharding = NO_CP,
    ) -> Tensor:
        """The audio's output [b, 128, l] of a forward whose video is that of an earlier one, which filled `record`;
        None: without the bridge. bridge_scale: of video to audio. expert: whose layers come with the audio's and the
        bridge's, where they are streamed.
        """
        stream, inputs = self.audio_dit.embed(audio)
        bridge, rope, options = self.dual_tower_bridge, None, LayerOptions()
        if record is not None:
            times = (record.times, audio.times)
            ropes = bridge.rope(record.grid, inputs.grid[0], fps, audio.latents.device, sharding, times)
            rope = None if ropes is None else ropes[1]
            options = LayerOptions(math.prod(record.grid) if sharding.size > 1 else None)
        for layer, block in enumerate(self.audio_dit.blocks):
            if self.streamed is not None:
                self.streamed.enter(expert, layer)
            if record is not None and layer in record.layers:
                stream = bridge.forward_audio(layer, stream, rope, record, bridge_scale, options)
            stream = block(stream, inputs.t_mod, inputs.context, inputs.rope)
        return self.audio_dit.finish(stream, inputs)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, put: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
        """Initialise for training from scratch, as Wan does: Xavier linears, small embeddings, zero head.

        The bridge's output projections start at zero, so that an untrained bridge changes nothing. Values are drawn
        on the generator's device, one tensor at a time; put: what is done with a parameter and its values.
        """
        source = generator.device
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv3d):
                weight = torch.empty(module.weight.shape, device=source).flatten(1)
                if "text_embedding" in name or "time_embedding" in name:
                    weight.normal_(0.0, 0.02, generator=generator)
                else:
                    nn.init.xavier_uniform_(weight, generator=generator)
                put(module.weight, weight.view(module.weight.shape))
                if module.bias is not None:
                    put(module.bias, torch.zeros(module.bias.shape, device=source))
            elif isinstance(module, NormParameters):
                put(module.weight, torch.ones(module.weight.shape, device=source))
                if module.bias is not None:
                    put(module.bias, torch.zeros(module.bias.shape, device=source))
        for name, parameter in self.named_parameters():
            value = torch.zeros(parameter.shape, device=source)
            if name.endswith(("modulation", "probe")):
                put(parameter, value.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator))
            elif "head.head" in name or (name.startswith("dual_tower_bridge") and ".inner.o." in name):
                put(parameter, value)
            elif name.endswith("condition_scale"):
                put(parameter, value.fill_(1.0))


def dual_tower_forward(
    video_dit: VideoDiT,
    audio_dit: AudioDiT,
    bridge: Bridge | None,
    video: Modality,
    audio: Modality,
    *,
    fps: float = 24.0,
    bridge_scale: tuple[float, float] = (1.0, 1.0),
    runner: LayerRunner = DIRECT,
    sharding: Sharding = NO_CP,
    trace: Trace | None = None,
    chunk_rows: int | None = None,
    record: VideoRecord | None = None,
) -> tuple[Tensor, Tensor]:
    """Predict both velocities (or what the network was trained to predict).

    video, audio: latents, timesteps and text of each, for clips of one batch.
    bridge None: no bridge layer in either direction. bridge_scale: (audio to video, video to audio).
    runner: how the layers are run, such as recomputed in the backward (`memory.checkpointing.layer_runner`).
    sharding: which video tokens are this process's own; all inputs are whole. trace(name, tensor) receives states.
    chunk_rows: see `LayerOptions`.
    record: an empty one takes what the audio reads of the video.
    Returns ([b, 16, t, h, w], [b, 128, l]) in the towers' dtype. Raises MovaError for shapes that do not fit.
    """
    forward = DualTowerPass.begin(
        video_dit,
        audio_dit,
        bridge,
        video,
        audio,
        fps=fps,
        bridge_scale=bridge_scale,
        runner=runner,
        sharding=sharding,
        trace=trace,
        chunk_rows=chunk_rows,
        record=record,
    )
    for layer in range(forward.layer_count):
        forward.run(layer)
    return forward.finish()


@dataclass
class DualTowerPass:
    """A forward under way: its layers, how they are run, and the residual streams of both towers after the last one."""

    layers: "DualTowerLayers"
    runner: LayerRunner
    video: ResidualStream
    audio: ResidualStream

    @classmethod
    def begin(
        cls,
        video_dit: VideoDiT,
        audio_dit: AudioDiT,
        bridge: Bridge | None,
        video: Modality,
        audio: Modality,
        *,
        fps: float = 24.0,
        bridge_scale: tuple[float, float] = (1.0, 1.0),
        runner: LayerRunner = DIRECT,
        sharding: Sharding = NO_CP,
        trace: Trace | None = None,
        chunk_rows: int | None = None,
        record: VideoRecord | None = None,
    ) -> "DualTowerPass":
        """Embed the inputs. Arguments and errors are those of `dual_tower_forward`."""
        if video.batch != audio.batch:
            raise MovaError(f"video has batch {video.batch} but audio has batch {audio.batch}")
        if sharding.size > 1 and bridge is not None and bridge.config.pooled_adaln:
            raise MovaError(
                "the bridge's pooled variant needs all video tokens in one process: context_parallel must be 1"
            )
        video_stream, video_in = video_dit.embed(video, sharding)
        audio_stream, audio_in = audio_dit.embed(audio)
        rope = None
        if bridge is not None:
            times = (video.times, audio.times)
            rope = bridge.rope(video_in.grid, audio_in.grid[0], fps, video.latents.device, sharding, times)
        if record is not None:
            record.grid, record.times = video_in.grid, video.times
        layers = DualTowerLayers(
            video_dit, audio_dit, bridge, video_in, audio_in, rope, bridge_scale, trace, chunk_rows, record
        )
        return cls(layers, runner, video_stream, audio_stream)

    @property
    def layer_count(self) -> int:
        """Layers of the longer tower."""
        return self.layers.count

    def run(self, layer: int) -> None:
        """Run layer `layer` (from 0); layers are run in order."""
        self.video, self.audio = self.runner.run(self.layers, layer, self.video, self.audio)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Both towers' outputs, as of `dual_tower_forward`."""
        video_dit, audio_dit = self.layers.video_dit, self.layers.audio_dit
        return video_dit.finish(self.video, self.layers.video_in), audio_dit.finish(self.audio, self.layers.audio_in)


@dataclass(frozen=True)
class DualTowerLayers:
    """All layers of one forward, with what each needs beside the two streams.

    enter: brings the weights of a layer before it is run or recomputed; None: they are there.
    """

    enter: ClassVar[Callable[[int], None] | None] = None
    video_dit: VideoDiT
    audio_dit: AudioDiT
    bridge: Bridge | None
    video_in: TowerInputs
    audio_in: TowerInputs
    rope: tuple[Rope, Rope] | None
    bridge_scale: tuple[float, float]
    trace: Trace | None
    chunk_rows: int | None = None
    record: VideoRecord | None = None

    @property
    def count(self) -> int:
        """Layers of the longer tower."""
        return max(len(self.video_dit.blocks), len(self.audio_dit.blocks))

    def run(
        self, layer: int, video: ResidualStream, audio: ResidualStream, recomputed: bool = False
    ) -> tuple[ResidualStream, ResidualStream]:
        """Bridge, video block, audio block: whichever of them this layer has. recomputed: see `LayerOptions`."""
        tokens = self.video_in.tokens if self.video_in.sharding.size > 1 else None
        options = LayerOptions(tokens, recomputed, self.chunk_rows)
        if self.bridge is not None and layer in self.bridge.config.layers:
            video, audio = self._bridge(self.bridge, layer, video, audio, options)
        if layer < len(self.video_dit.blocks):
            video = self._block("visual", self.video_dit, layer, video, self.video_in, options)
        if layer < len(self.audio_dit.blocks):
            audio = self._block("audio", self.audio_dit, layer, audio, self.audio_in, options._replace(tokens=None))
        return video, audio

    def run_audio(self, layer: int, audio: ResidualStream, record: VideoRecord | None) -> ResidualStream:
        """The audio's part of a layer on what an earlier forward recorded of the video; None: without the bridge."""
        options = LayerOptions(chunk_rows=self.chunk_rows)
        if self.bridge is not None and record is not None and layer in record.layers:
            rope = None if self.rope is None else self.rope[1]
            audio = self.bridge.forward_audio(layer, audio, rope, record, self.bridge_scale[1], options)
        if layer < len(self.audio_dit.blocks):
            audio = self._block("audio", self.audio_dit, layer, audio, self.audio_in, options)
        return audio

    def settle(self, video: ResidualStream, audio: ResidualStream) -> tuple[Tensor, Tensor]:
        """The streams' values [b, s, d]: their pending updates added."""
        return video.settle(self.video_dit.ops), audio.settle(self.audio_dit.ops)

    def _bridge(
        self, bridge: Bridge, layer: int, video: ResidualStream, audio: ResidualStream, options: LayerOptions
    ) -> tuple[ResidualStream, ResidualStream]:
        trace = _scoped(self.trace, "bridge", layer, ".")
        place = (self.rope, self.video_in.grid, self.bridge_scale)

        def run(*parts: Any) -> tuple[ResidualStream, ResidualStream]:
            return bridge(layer, ResidualStream(*parts[:3]), ResidualStream(*parts[3:]), *place, trace, options)

        if options.chunk_rows is not None and options.recomputed and options.tokens is None:
            # What it keeps waits for the block to be differentiated: little work, but half as much as a block keeps.
            video, audio = checkpoint(run, *video, *audio, use_reentrant=False, preserve_rng_state=False)
        else:
            video, audio = bridge(layer, video, audio, *place, trace, options, self.record)
        if trace is not None:
            video, audio = map(ResidualStream, self.settle(video, audio))
            trace("visual", video.x)
            trace("audio", audio.x)
        return video, audio

    def _block(
        self,
        name: str,
        tower: Tower,
        layer: int,
        stream: ResidualStream,
        inputs: TowerInputs,
        options: LayerOptions,
    ) -> ResidualStream:
        trace = _scoped(self.trace, name, ".block", layer, ".")
        place = (inputs.t_mod, inputs.context, inputs.rope)
        stream = tower.blocks[layer](stream, *place, trace, options)
        if trace is not None:
            stream = ResidualStream(stream.settle(tower.ops))
            trace("out", stream.x)
        return stream


def _scoped(trace: Trace | None, *prefix: object) -> Trace | None:
    # The name is put together where it is wanted: a compiler takes a layer's number for a variable.
    return None if trace is None else lambda name, x: trace("".join(map(str, prefix)) + name, x)
