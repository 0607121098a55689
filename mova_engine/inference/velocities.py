"""Velocities of a batch of clips: the model's evaluations at a state of the denoising loop."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mova_engine.diffusion.conditioning import video_input
from mova_engine.diffusion.guidance import Branch, Velocities
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Steps
from mova_engine.inference.first_block import FirstBlockCache
from mova_engine.inference.given_latents import GivenLatents
from mova_engine.models.bridge import VideoRecord
from mova_engine.models.context_parallel import Sharding
from mova_engine.models.modality import Modality
from mova_engine.models.mova import ForwardInputs, Mova


class Latents(NamedTuple):
    """Latents of both modalities, float32: video [b, 16, t, h, w] and audio [b, 128, l]."""

    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch of clips.

    condition [b, 20, t, h, w]: mask and latents of the given frames. text [b, n, d]: features of the prompts.
    empty_text [b, n, d]: features of the empty or the negative prompt, for guidance. video, audio: latents that are
    given rather than generated.
    """

    condition: Tensor
    text: Tensor
    empty_text: Tensor
    video: GivenLatents | None = None
    audio: GivenLatents | None = None


@dataclass(frozen=True)
class Recording:
    """What one evaluation leaves for later ones that run the audio tower alone.

    read: what the audio reads of the video, by forward, which is named by its branches; None: no bridge. video: the
    video's velocity by branch, float32; a branch that is missing has none, since its video is given.
    """

    read: dict[tuple[Branch, ...], VideoRecord | None] = field(
        default_factory=dict[tuple[Branch, ...], VideoRecord | None]
    )
    video: dict[Branch, Tensor] = field(default_factory=dict[Branch, Tensor])

    def to(self, device: torch.device) -> "Recording":
        """The same on a device."""
        read = {together: None if each is None else each.to(device) for together, each in self.read.items()}
        return Recording(read, {branch: velocity.to(device) for branch, velocity in self.video.items()})


@dataclass(frozen=True)
class VelocityModel:
    """The model with the conditions of one batch: evaluates velocities.

    batch_guidance: branches that differ in the text alone share a forward. audio_to_video: the bridge's scale in that
    direction.
    """

    mova: Mova
    conditions: Conditions
    prediction: Prediction
    fps: float
    bridge: bool
    batch_guidance: bool
    sharding: Sharding
    audio_to_video: float = 1.0

    def forwards(self, branches: Sequence[Branch]) -> list[tuple[Branch, ...]]:
        """The branches of each forward of a step. Those that differ in text alone share one, where that is allowed."""
        if not self.batch_guidance:
            return [(branch,) for branch in branches]
        return [tuple(b for b in branches if b[1] == bridge) for bridge in {bridge: None for _, bridge in branches}]

    def evaluate(
        self,
        branches: Sequence[Branch],
        state: Latents,
        steps: Steps,
        index: int,
        recording: Recording | None = None,
        cache: FirstBlockCache | None = None,
    ) -> dict[Branch, Velocities]:
        """Return branch -> (video, audio) velocities, float32, at `state` and the noise level of step `index`.

        Branches that differ only in the text share a forward if `batch_guidance` is set. Forwards of a model whose
        layers are streamed run side by side, so that each layer's weights come once. recording: an empty one takes what
        `evaluate_audio` needs. cache: leaves layers of the video tower out.
        """
        forwards, record = self.forwards(branches), recording is not None or cache is not None
        inputs = [self._inputs(together, state, steps, index, record) for together in forwards]
        options: dict[str, Any] = {"expert": steps.experts[index], "fps": self.fps, "sharding": self.sharding}
        if self.audio_to_video != 1.0:
            options["bridge_scale"] = (self.audio_to_video, 1.0)
        if self.mova.streamed is not None and len(inputs) > 1:
            outputs = self.mova.forward_side_by_side(inputs, **options)
        else:
            outputs = []
            for together, each in zip(forwards, inputs, strict=True):
                if cache is not None:
                    options["runner"] = cache.runner(together, len(together))
                outputs.append(self.mova(each.video, each.audio, bridge=each.bridge, record=each.record, **options))
        found: dict[Branch, Velocities] = {}
        for together, (video, audio) in zip(forwards, outputs, strict=True):
            pairs = zip(
                self._velocities(video, len(together), state.video, steps.video_sigmas[index : index + 1]),
                self._velocities(audio, len(together), state.audio, steps.audio_sigmas[index : index + 1]),
                strict=True,
            )
            found.update(zip(together, pairs, strict=True))
        if recording is not None:
            recording.read.update(zip(forwards, (each.record for each in inputs), strict=True))
            if self.conditions.video is None or not self.conditions.video.is_whole:
                recording.video.update({branch: video for branch, (video, _) in found.items()})
        return found

    def evaluate_audio(
        self, branches: Sequence[Branch], state: Latents, steps: Steps, index: int, recording: Recording
    ) -> dict[Branch, Velocities]:
        """As `evaluate`, with the video as it was when it was recorded: only the audio tower runs, and the video's
        velocity is the recorded one, or zero where the video is given.
        """
        still = torch.zeros_like(state.video)
        found: dict[Branch, Velocities] = {}
        for together, record in recording.read.items():
            if set(together).isdisjoint(branches):
                continue
            output = self.mova.forward_audio(
                self._audio_input(together, state, steps, index),
                record,
                expert=steps.experts[index],
                fps=self.fps,
                sharding=self.sharding,
            )
            sigma = steps.audio_sigmas[index : index + 1]
            for branch, velocity in zip(
                together, self._velocities(output, len(together), state.audio, sigma), strict=True
            ):
                found[branch] = (recording.video.get(branch, still), velocity)
        return found

    def _inputs(
        self, together: Sequence[Branch], state: Latents, steps: Steps, index: int, record: bool
    ) -> ForwardInputs:
        """The inputs of one forward: a copy of the batch for each of its branches, with the text or the empty text."""
        given = self.conditions.video
        video = Modality(
            torch.cat([video_input(state.video, self.conditions.condition)] * len(together)),
            steps.video_timesteps[index : index + 1],
            self._text(together),
            given=None if given is None else given.seen,
        )
        bridge = together[0][1] and self.bridge
        audio = self._audio_input(together, state, steps, index)
        return ForwardInputs(video, audio, bridge, VideoRecord() if record and bridge else None)

    def _audio_input(self, together: Sequence[Branch], state: Latents, steps: Steps, index: int) -> Modality:
        given = self.conditions.audio
        return Modality(
            torch.cat([state.audio] * len(together)),
            steps.audio_timesteps[index : index + 1],
            self._text(together),
            given=None if given is None else given.seen,
        )

    def _text(self, together: Sequence[Branch]) -> Tensor:
        texts = self.conditions.empty_text, self.conditions.text
        return torch.cat([texts[with_text] for with_text, _ in together])

    def _velocities(self, output: Tensor, n: int, state: Tensor, sigma: Tensor) -> list[Tensor]:
        """The velocities of each of a forward's `n` branches, from what the network predicts. sigma [1]."""
        return [self.prediction.velocity(each, state, sigma) for each in output.float().chunk(n)]
