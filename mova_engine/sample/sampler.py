"""The denoising loop: from noise to latents of picture and sound, both at once.

Euler steps along the learned velocity (Lipman et al., 2023). States, guidance and steps are float32 whatever the
towers' dtype; noise levels are the schedule's own, exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mova_engine.config import ClipConfig, MovaConfig
from mova_engine.diffusion.condition import video_input
from mova_engine.diffusion.guidance import Guidance, Velocities
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Steps, add_noise, euler_step
from mova_engine.errors import MovaError
from mova_engine.models.bridge import Bridge
from mova_engine.models.dual_tower import dual_tower_forward
from mova_engine.models.mova import Mova
from mova_engine.models.video_dit import VideoDiT


class Latents(NamedTuple):
    """One state of both modalities, float32: video [b, 16, t, h, w] and audio [b, 128, l]."""

    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Conditions:
    """What the clips of a batch are to show.

    condition [b, 20, t, h, w] (mask and image latents); text and empty_text [b, n, d]: features of the prompts and of
    what guidance steers away from (the empty string, or a negative prompt).
    """

    condition: Tensor
    text: Tensor
    empty_text: Tensor


@dataclass(frozen=True)
class Step:
    """One step taken: its index, the expert that served it, the state after it, the guided velocity that led there."""

    index: int
    expert: int
    state: Latents
    velocity: Latents


@dataclass(frozen=True)
class LoopOptions:
    """How the loop runs. The first two must be as in training; the others only trade speed for memory.

    clean_first_frame: latent frame 0 follows the noise levels of the given image instead of the network, for networks
    whose loss left that frame out; it ends as the image itself.
    bridge: False for a model that was trained without it.
    batch_guidance: evaluations that differ in text alone share one forward of twice the batch; False halves the memory.
    offload: the expert that is not in use waits on the CPU.
    """

    clean_first_frame: bool = False
    bridge: bool = True
    batch_guidance: bool = True
    offload: bool = False


def draw_noise(
    config: MovaConfig, seeds: Sequence[int], clip: ClipConfig, device: torch.device | str | None = None
) -> Latents:
    """Standard normal latents of one clip per seed, float32.

    Each clip has a generator of its own, on the CPU: its noise depends neither on its neighbours nor on the device.
    """
    video_shape, audio_shape = (config.video.out_dim, *clip.latent_shape), (config.audio.out_dim, clip.audio_tokens)
    pairs = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        pairs.append((torch.randn(video_shape, generator=generator), torch.randn(audio_shape, generator=generator)))
    video, audio = zip(*pairs, strict=True)
    return Latents(torch.stack(video).to(device), torch.stack(audio).to(device))


# Not inference mode: tables that the towers cache would come out unusable for a training step of the same process.
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
) -> Latents:
    """Take all `steps` from `noise` and return the clean latents, float32, on the noise's device.

    fps: pictures per second of the clip, for the bridge's alignment of the two clocks. on_step is told of every step.
    Raises MovaError for shapes that do not fit, and when the latents come out not finite.
    """
    options = options or LoopOptions()
    experts = _Experts(mova, noise.video.device, options.offload)
    model = _Model(mova, mova.dual_tower_bridge if options.bridge else None, conditions, prediction, fps)
    # The forms with an evaluation without text but with the bridge: it can share a forward with the full one.
    share = options.batch_guidance and guidance.form in ("text", "dual")
    state = start = Latents(noise.video.float(), noise.audio.float())
    image = conditions.condition[:, -noise.video.shape[1] :, 0].float()
    video_sigmas, audio_sigmas = steps.video_sigmas.tolist(), steps.audio_sigmas.tolist()
    for index, expert in enumerate(steps.experts):
        run = partial(model.velocities, experts.use(expert), state, steps, index)
        velocity = Latents(*guidance.combine(_Evaluations(run, share)))
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


class _Experts:
    """The two video experts, of which only the one in use needs to lie on the device."""

    def __init__(self, mova: Mova, device: torch.device, offload: bool) -> None:
        self.mova, self.device, self.offload = mova, device, offload and mova.video_dit_2 is not None

    def use(self, index: int) -> VideoDiT:
        """Expert `index`, on the device."""
        expert = self.mova.expert(index)
        if self.offload:
            # The other leaves first: they may not fit together.
            self.mova.expert(1 - index).to("cpu")
            expert.to(self.device)
        return expert


@dataclass(frozen=True)
class _Model:
    """The model under one batch's conditions."""

    mova: Mova
    bridge: Bridge | None
    conditions: Conditions
    prediction: Prediction
    fps: float

    def velocities(
        self, expert: VideoDiT, state: Latents, steps: Steps, index: int, with_text: tuple[bool, ...], with_bridge: bool
    ) -> list[Velocities]:
        """Velocities, float32, in `state` at the noise level of step `index`: a pair for each entry of `with_text`.

        The entries are copies of the batch in one forward; each copy sees the text or the empty text.
        """
        n, here = len(with_text), slice(index, index + 1)
        texts = [self.conditions.text if text else self.conditions.empty_text for text in with_text]
        outputs = dual_tower_forward(
            expert,
            self.mova.audio_dit,
            self.bridge if with_bridge else None,
            torch.cat([video_input(state.video, self.conditions.condition)] * n),
            torch.cat([state.audio] * n),
            torch.cat(texts),
            steps.video_timesteps[here],
            steps.audio_timesteps[here],
            fps=self.fps,
        )
        pairs = zip(*(output.float().chunk(n) for output in outputs), strict=True)
        video_sigma, audio_sigma = steps.video_sigmas[here], steps.audio_sigmas[here]
        return [
            (
                self.prediction.velocity(video, state.video, video_sigma),
                self.prediction.velocity(audio, state.audio, audio_sigma),
            )
            for video, audio in pairs
        ]


class _Evaluations:
    """Guidance's callback for one step: runs the model with or without text and bridge.

    share: the two evaluations with the bridge are computed together when either is asked for.
    """

    def __init__(self, run: Callable[[tuple[bool, ...], bool], list[Velocities]], share: bool) -> None:
        self.run, self.share = run, share
        self.bridged: dict[bool, Velocities] = {}

    def __call__(self, with_text: bool, with_bridge: bool) -> Velocities:
        if not (self.share and with_bridge):
            return self.run((with_text,), with_bridge)[0]
        if not self.bridged:
            self.bridged = dict(zip((True, False), self.run((True, False), True), strict=True))
        return self.bridged[with_text]
