"""One micro-batch: noise the latents, run the towers, take the loss. What a trainer of one's own would call too."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mova_engine.diffusion.condition import first_frame_condition, video_input
from mova_engine.diffusion.loss import Losses, Share, mse, velocity_loss
from mova_engine.diffusion.schedule import add_noise
from mova_engine.models.mova import Mova
from mova_engine.models.sharding import WHOLE, Sharding
from mova_engine.train.config import TrainConfig
from mova_engine.train.draws import StepDraw


@dataclass(frozen=True)
class LatentBatch:
    """Clips as the towers see them, on the device, float32.

    audio [b, 128, l]; text [b, n, d] and empty_text (the empty prompt's features) [1, n, d]; video and image (latents
    of [first frame, zeros...]) [b, 16, t, h, w], None where only the audio tower is trained. ids: the clips' names.
    audio_factors [b]: of each clip's audio loss, 0 where it has no sound that is to be learned; None: 1.
    """

    audio: Tensor
    text: Tensor
    empty_text: Tensor
    video: Tensor | None = None
    image: Tensor | None = None
    ids: tuple[str, ...] = ()
    audio_factors: Tensor | None = None

    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, without the batch, of the noise that a step needs: audio, then video where there is one."""
        latents = (self.audio,) if self.video is None else (self.audio, self.video)
        return tuple(tuple(x.shape[1:]) for x in latents)

    def context(self, drop: Tensor) -> Tensor:
        """The text with the empty prompt's where `drop` [b] says so."""
        if not drop.any():
            return self.text
        return torch.where(drop.to(self.text.device).view(-1, 1, 1), self.empty_text, self.text)


def micro_losses(
    mova: Mova,
    batch: LatentBatch,
    draw: StepDraw,
    noise: tuple[Tensor, ...],
    config: TrainConfig,
    sharding: Sharding = WHOLE,
) -> Losses:
    """Losses on one micro-batch, float32 scalars; `draw` and `noise` (audio, video) are this micro-batch's part.

    The networks' outputs become velocities before the loss (see `diffusion.prediction`). Where processes share the
    clips, these are this one's share of the losses, and so are the gradients: see `parallel.context`.
    """
    if config.task == "audio":
        return _audio(mova, batch, draw, noise, config)
    return _joint(mova, batch, draw, noise, config, sharding)


def _joint(
    mova: Mova,
    batch: LatentBatch,
    draw: StepDraw,
    noise: tuple[Tensor, ...],
    config: TrainConfig,
    sharding: Sharding,
) -> Losses:
    times, prediction, expert = draw.times, config.diffusion.output(), draw.expert or 0
    audio_noise, video_noise = noise
    noisy_video = add_noise(batch.video, video_noise, times.video_sigma)
    noisy_audio = add_noise(batch.audio, audio_noise, times.audio_sigma)
    video, audio = mova(
        video_input(noisy_video, first_frame_condition(batch.image)),
        noisy_audio,
        batch.context(draw.drop_text),
        times.video_timestep,
        times.audio_timestep,
        expert=expert,
        bridge=config.model.bridge,
        fps=mova.config.clip.fps,
        checkpointing=config.checkpointing,
        offload=config.offload,
        sharding=sharding,
    )
    share = Share(mova.expert(expert).own_latents(batch.video.shape, sharding, batch.video.device), 1 / sharding.size)
    return velocity_loss(
        *prediction.compared(video.float(), batch.video, video_noise, noisy_video, times.video_sigma),
        *prediction.compared(audio.float(), batch.audio, audio_noise, noisy_audio, times.audio_sigma),
        config.diffusion.weights(),
        share,
        batch.audio_factors,
    )


def _audio(mova: Mova, batch: LatentBatch, draw: StepDraw, noise: tuple[Tensor, ...], config: TrainConfig) -> Losses:
    """The audio tower alone, as in its pre-training; the video's loss is zero."""
    sigma, prediction = draw.times.audio_sigma, config.diffusion.output()
    noisy = add_noise(batch.audio, noise[0], sigma)
    output = mova.audio_dit(noisy, draw.times.audio_timestep, batch.context(draw.drop_text))
    loss = mse(*prediction.compared(output.float(), batch.audio, noise[0], noisy, sigma))
    return Losses(config.diffusion.audio_weight * loss, torch.zeros_like(loss), loss)
