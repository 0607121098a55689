"""The adaptive step cache: where the first layer of the video tower changes little, the others are not run.

The residual of the tower's first layer (bridge and block) tells how the whole tower would change: where it differs from
that of the last step which ran all layers by less than a threshold, relative to its size, what the other layers added
then is added again. The rule is that of ParaAttention's first-block cache (Cheng, 2024), which follows TeaCache (Liu et
al., 2024). Here it is kept apart by expert and forward of guidance, and the audio tower runs in every step, on the keys
and values that the bridge read of the video in the last step that ran all of it.

It is for comparison with planned caches (`step_cache`): when it skips is known only during a run, and each decision
makes the host wait for the device.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.models.bridge import VideoRecord
from mova_engine.models.layers import ResidualStream
from mova_engine.models.mova import DualTowerLayers
from mova_engine.ops import OpTable


@dataclass(frozen=True)
class FirstBlock:
    """The adaptive step cache of a run. threshold: relative change of the first layer's residual below which the other
    layers are left out; 0: never.
    """

    threshold: float

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise MovaError(f"the threshold of the adaptive cache must be at least 0, got {self.threshold:g}")

    def words(self) -> str:
        """What is printed before a run."""
        return (
            "step cache: the video tower is left out where its first layer's residual has changed by less than "
            f"{self.threshold:g} of its size; how often, is known afterwards"
        )


@dataclass(frozen=True)
class KeptLayers:
    """Of the last forward through all layers: the first layer's residual and what the others added, [b, s, d]; what the
    audio reads of the video.
    """

    first: Tensor
    rest: Tensor
    record: VideoRecord | None


class FirstBlockCache:
    """What is kept within a run. left_out: evaluations of the video tower, by branch of guidance, so far."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.left_out = 0
        self._phase: int | None = None
        self._kept: dict[Hashable, KeptLayers] = {}

    def enter(self, phase: int) -> None:
        """Begin an evaluation; nothing is kept beyond its phase (`video_passes.phases`)."""
        if phase != self._phase:
            self._phase = phase
            self._kept.clear()

    def runner(self, together: Hashable, evaluations: int) -> "FirstBlockRunner":
        """Of one forward, named by its branches of guidance, of which there are `evaluations`."""
        return FirstBlockRunner(self, together, evaluations)

    def similar(self, together: Hashable, first: Tensor) -> KeptLayers | None:
        """What was kept, where the first layer's residual [b, s, d] of each element of the batch is near to it."""
        kept = self._kept.get(together)
        if kept is None:
            return None
        there = kept.first.float()
        change = (first.float() - there).abs().mean((1, 2))
        near = change < self.threshold * there.abs().mean((1, 2))
        return kept if bool(near.all()) else None

    def keep(self, together: Hashable, kept: KeptLayers) -> None:
        """In place of what was kept."""
        self._kept[together] = kept


class FirstBlockRunner:
    """Runs the layers of one forward, of the video tower all or the first alone."""

    def __init__(self, cache: FirstBlockCache, together: Hashable, evaluations: int) -> None:
        self._cache, self._together, self._evaluations = cache, together, evaluations
        self._reused: KeptLayers | None = None
        self._first = self._after = torch.empty(0)

    def run(
        self, layers: DualTowerLayers, layer: int, video: ResidualStream, audio: ResidualStream
    ) -> tuple[ResidualStream, ResidualStream]:
        """As of `LayerRunner`."""
        ops, last = layers.video_dit.ops, layers.count - 1
        if layer == 0:
            before = _value(video, ops)
            video, audio = layers.run(layer, video, audio)
            self._after = _value(video, ops)
            self._first = self._after - before
            self._reused = self._cache.similar(self._together, self._first)
        elif self._reused is None:
            video, audio = layers.run(layer, video, audio)
        else:
            audio = layers.run_audio(layer, audio, self._reused.record)
        if layer == last and self._reused is not None:
            self._cache.left_out += self._evaluations
            video = ResidualStream(self._after + self._reused.rest)
        elif layer == last:
            kept = KeptLayers(self._first, _value(video, ops) - self._after, layers.record)
            self._cache.keep(self._together, kept)
        return video, audio


def _value(stream: ResidualStream, ops: OpTable) -> Tensor:
    """The value of a stream [b, s, d], which serves on."""
    return ResidualStream(stream.x, stream.y, stream.gate).settle(ops)
