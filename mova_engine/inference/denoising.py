"""The denoising loop: from noise to the latents of video and audio, both at once.

Euler steps along the learned velocity (Lipman et al., 2023). Latents, guidance and steps are float32 in every dtype of
the towers; noise levels are those of the schedule, not rounded to that dtype.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.stages import DENOISE
from mova_engine.diffusion.conditioning import video_input
from mova_engine.diffusion.guidance import Branch, Guidance, Velocities
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Steps, add_noise, euler_step
from mova_engine.distributed.branches import all_branches, own_branches
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.memory.residency import Residency, stage
from mova_engine.models.context_parallel import Sharding
from mova_engine.models.modality import Modality
from mova_engine.models.mova import Mova


class Latents(NamedTuple):
    """Latents of both modalities, float32: video [b, 16, t, h, w] and audio [b, 128, l]."""

    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch of clips.

    condition [b, 20, t, h, w]: mask and latents of the given frames. text [b, n, d]: features of the prompts.
    empty_text [b, n, d]: features of the empty or the negative prompt, for guidance.
    """

    condition: Tensor
    text: Tensor
    empty_text: Tensor


@dataclass(frozen=True)
class Step:
    """One denoising step. index: from 0. expert: index of the video expert. state: the latents after the step.
    velocity: the guided velocity of the step.
    """

    index: int
    expert: int
    state: Latents
    velocity: Latents


@dataclass(frozen=True)
class LoopOptions:
    """How the loop runs. The first two options must be as in training; the last one trades speed for memory.

    clean_first_frame: latent frame 0 is the given image at each step's noise level, not the network's output; for
    networks whose training loss excluded that frame.
    bridge: False for a model that was trained without a bridge.
    batch_guidance: evaluations that differ only in the text share one forward of twice the batch; False halves the
    memory.
    """

    clean_first_frame: bool = False
    bridge: bool = True
    batch_guidance: bool = True


def draw_noise(
    config: MovaConfig, seeds: Sequence[int], clip: ClipConfig, device: torch.device | str | None = None
) -> Latents:
    """Draw standard normal latents, float32, for one clip per seed.

    Each clip has its own generator on the CPU: its noise depends neither on the other clips nor on the device.
    """
    video_shape, audio_shape = (config.video.out_dim, *clip.latent_shape), (config.audio.out_dim, clip.audio_tokens)
    pairs = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        pairs.append((torch.randn(video_shape, generator=generator), torch.randn(audio_shape, generator=generator)))
    video, audio = zip(*pairs, strict=True)
    return Latents(torch.stack(video).to(device), torch.stack(audio).to(device))


# Not inference mode: the towers cache rotary tables, and tensors made in inference mode cannot be used in training.
@torch.no_grad()
def denoise(
    mova: Mova,
    conditions: Conditions,
    noise: Latents,
    steps: Steps,
    guidance: Guidance,
    prediction: Prediction,
    *,
    fps: float = 24.0,
    options: LoopOptions | None = None,
    on_step: Callable[[Step], None] | None = None,
    processes: Processes | None = None,
    residency: Residency | None = None,
) -> Latents:
    """Denoise `noise` by all `steps`; return the clean latents, float32, on the device of the noise.

    fps: video frames per second, with which the bridge aligns audio and video tokens. on_step: called after every step.
    processes: the processes that make the clips together. All pass the same arguments and return bit-identical results;
    each computes its guidance branches on its tokens. residency: moves towers and bridge to the device for the steps
    that use them; None: they are there.
    Raises MovaError for shapes that do not fit, and if the result is not finite.
    """
    options, place = options or LoopOptions(), processes or Processes()
    model = _Model(mova, conditions, prediction, fps, options, place.sharding)
    own = own_branches(guidance.branches, place.branches)
    if mova.streamed is not None:
        mova.streamed.plan(steps.experts, together=len(model.forwards(own)))
    state = start = Latents(noise.video.float(), noise.audio.float())
    image = conditions.condition[:, -noise.video.shape[1] :, 0].float()
    video_sigmas, audio_sigmas = steps.video_sigmas.tolist(), steps.audio_sigmas.tolist()
    for expert, served in groupby(range(len(steps.experts)), steps.experts.__getitem__):
        with stage(residency, DENOISE[expert]):
            for index in served:
                found = all_branches(guidance.branches, model.evaluate(own, state, steps, index), place.branches)
                velocity = Latents(*guidance.combine(lambda *branch, found=found: found[branch]))
                # Video is gathered, so it is equal in all processes. Audio was computed by each process: make it equal.
                velocity = velocity._replace(audio=place.sharding.broadcast(velocity.audio))
                state = Latents(
                    euler_step(state.video, velocity.video, *video_sigmas[index : index + 2]),
                    euler_step(state.audio, velocity.audio, *audio_sigmas[index : index + 2]),
                )
                if options.clean_first_frame:
                    sigma = steps.video_sigmas[index + 1].expand(len(image))
                    state.video[:, :, 0] = add_noise(image, start.video[:, :, 0], sigma)
                if on_step is not None:
                    on_step(Step(index, expert, state, velocity))
    for name, latents in state._asdict().items():
        if not latents.isfinite().all():
            raise MovaError(f"sampling gave {name} latents that are not finite; try --dtype float32 or a smaller scale")
    return state


@dataclass(frozen=True)
class _Model:
    """The model with the conditions of one batch: evaluates velocities."""

    mova: Mova
    conditions: Conditions
    prediction: Prediction
    fps: float
    options: LoopOptions
    sharding: Sharding

    def forwards(self, branches: Sequence[Branch]) -> list[list[Branch]]:
        """The branches of each forward of a step. Those that differ in text alone share one, where the options allow
        it.
        """
        if not self.options.batch_guidance:
            return [[branch] for branch in branches]
        return [[b for b in branches if b[1] == bridge] for bridge in {bridge: None for _, bridge in branches}]

    def evaluate(
        self, branches: Sequence[Branch], state: Latents, steps: Steps, index: int
    ) -> dict[Branch, Velocities]:
        """Return branch -> (video, audio) velocities, float32, at `state` and the noise level of step `index`.

        Branches that differ only in the text share a forward if `options.batch_guidance` is set. Forwards of a model
        whose layers are streamed run side by side, so that each layer's weights come once.
        """
        forwards = self.forwards(branches)
        inputs = [self._inputs(together, state, steps, index) for together in forwards]
        options = {"expert": steps.experts[index], "fps": self.fps, "sharding": self.sharding}
        if self.mova.streamed is not None and len(inputs) > 1:
            outputs = self.mova.forward_side_by_side(inputs, **options)
        else:
            outputs = [self.mova(video, audio, bridge=bridge, **options) for video, audio, bridge in inputs]
        found: dict[Branch, Velocities] = {}
        for together, output in zip(forwards, outputs, strict=True):
            found.update(zip(together, self._velocities(output, len(together), state, steps, index), strict=True))
        return found

    def _inputs(
        self, together: Sequence[Branch], state: Latents, steps: Steps, index: int
    ) -> tuple[Modality, Modality, bool]:
        """(video, audio, whether through the bridge) of one forward: a copy of the batch for each of its branches, with
        the text or the empty text.
        """
        n, here = len(together), slice(index, index + 1)
        text = torch.cat(
            [self.conditions.text if with_text else self.conditions.empty_text for with_text, _ in together]
        )
        video = torch.cat([video_input(state.video, self.conditions.condition)] * n)
        return (
            Modality(video, steps.video_timesteps[here], text),
            Modality(torch.cat([state.audio] * n), steps.audio_timesteps[here], text),
            together[0][1] and self.options.bridge,
        )

    def _velocities(
        self, outputs: tuple[Tensor, Tensor], n: int, state: Latents, steps: Steps, index: int
    ) -> list[Velocities]:
        """The velocities of each of a forward's `n` branches, from what the network predicts."""
        pairs = zip(*(output.float().chunk(n) for output in outputs), strict=True)
        video_sigma, audio_sigma = steps.video_sigmas[index : index + 1], steps.audio_sigmas[index : index + 1]
        return [
            (
                self.prediction.velocity(video, state.video, video_sigma),
                self.prediction.velocity(audio, state.audio, audio_sigma),
            )
            for video, audio in pairs
        ]
