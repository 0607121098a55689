"""The training loss: mean squared error per modality, weighted."""

from dataclasses import dataclass

from torch import Tensor

from mova_engine.config.diffusion import LossWeights
from mova_engine.errors import MovaError


@dataclass(frozen=True)
class Losses:
    """Scalars, float32."""

    total: Tensor
    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Share:
    """The part of a loss that one of several processes takes on itself; their shares add up to the loss.

    video: 1 where a latent is its own and 0 elsewhere, [1, 1, t, h, w]; None: all are. audio: its factor.
    """

    video: Tensor | None = None
    audio: float = 1.0


WHOLE = Share()


def mse(prediction: Tensor, target: Tensor, own: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
    """Mean over all elements of the squared difference, in float32; own: others' elements count as zero. factors [b]:
    what each clip's own mean is multiplied by before the mean over clips; [b, p]: the same for each of its positions,
    the third dimension.
    """
    squares = (prediction.float() - target.float()).square()
    if own is not None:
        squares = squares * own
    if factors is not None:
        each = squares.flatten(1) if factors.ndim == 1 else squares.transpose(1, 2).flatten(2)
        return (each.mean(-1) * factors).mean()
    return squares.mean() if own is None else squares.sum() / squares.numel()


def velocity_loss(
    video: Tensor,
    video_target: Tensor,
    audio: Tensor,
    audio_target: Tensor,
    weights: LossWeights,
    share: Share = WHOLE,
    video_factors: Tensor | None = None,
    audio_factors: Tensor | None = None,
) -> Losses:
    """video [b, 16, t, h, w] and audio [b, 128, l] velocities beside their targets; video_factors, audio_factors: as of
    `mse`, for clips whose pictures or sound do not count, in whole or in part; for latent frames, of those that
    skip_first_frame leaves. MovaError where no latent frame counts.
    """
    own = share.video
    if weights.skip_first_frame:
        if video.shape[2] < 2:
            raise MovaError("skip_first_frame leaves nothing of a clip of one latent frame: there is no video loss")
        video, video_target = video[:, :, 1:], video_target[:, :, 1:]
        own = None if own is None else own[:, :, 1:]
    video_loss = mse(video, video_target, own, video_factors)
    audio_loss = share.audio * mse(audio, audio_target, factors=audio_factors)
    return Losses(weights.video * video_loss + weights.audio * audio_loss, video_loss, audio_loss)
