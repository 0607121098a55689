"""The embedded video codec: exact round trip of latents, what it keeps of a picture, and what it refuses."""

import json
import math

import pytest
import torch

from mova_engine.codecs import VideoCodec, build_video_codec, video_from_uint8, video_to_uint8
from mova_engine.codecs.toy.dct_video import DctVideoCodec
from mova_engine.errors import MovaError


def ball_clip(frames: int = 33, size: int = 48) -> torch.Tensor:
    """A red ball that falls and bounces on a dark ground: [1, 3, frames, size, size] in [-1, 1]."""
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    clip = torch.full((3, frames, size, size), -0.75)
    red = torch.tensor([0.8, -0.6, -0.6])[:, None, None]
    for i in range(frames):
        height = 28 * abs(math.cos(math.pi * i / 17))
        distance = ((columns - 21) ** 2 + (rows - (38 - height)) ** 2).sqrt()
        inside = (6.5 - distance).clamp(0, 1)
        clip[:, i] += inside * (red + 0.75)
    return clip[None]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """dB, for values in [-1, 1]."""
    return 10 * math.log10(4 / (a - b).square().mean().item())


def ball_rows(video: torch.Tensor) -> torch.Tensor:
    """Row of the ball's centre in each frame: [1, f]."""
    weight = (video + 0.75).abs().sum(1).square()
    rows = torch.arange(video.shape[3]) + 0.5
    return (weight.sum(3) * rows).sum(2) / weight.sum((2, 3))


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_latents_survive_decoding_and_encoding(frames: int) -> None:
    z = torch.randn(2, 16, frames, 3, 5, generator=torch.Generator().manual_seed(frames))
    codec = DctVideoCodec()
    video = codec.decode(z)
    assert video.shape == (2, 3, 4 * (frames - 1) + 1, 24, 40)
    assert isinstance(codec, VideoCodec)
    torch.testing.assert_close(codec.encode(video), z, rtol=0, atol=1e-5)


def test_a_ball_is_still_a_red_ball() -> None:
    clip = ball_clip()
    codec = DctVideoCodec()
    back = codec.decode(codec.encode(clip)).clamp(-1, 1)
    assert psnr(back, clip) > 22
    assert psnr(back[:, :, :1], clip[:, :, :1]) > 25
    # Where the ball is, frame by frame, and which colour it adds to the ground.
    assert (ball_rows(back) - ball_rows(clip)).abs().mean() < 0.5
    added, added_back = ((x + 0.75).sum((0, 2, 3, 4)) for x in (clip, back))
    assert torch.cosine_similarity(added, added_back, dim=0) > 0.99


def test_the_first_frame_stands_alone_and_a_still_picture_keeps_its_latents() -> None:
    clip, codec = ball_clip(9), DctVideoCodec()
    latents = codec.encode(clip)
    torch.testing.assert_close(codec.encode(clip[:, :, :1]), latents[:, :, :1])
    still = codec.encode(clip[:, :, :1].expand(-1, -1, 9, -1, -1))
    # Three times what the 4 x 64 additions of a latent are off by, each by half a unit of the result, at random.
    atol = 3 * math.sqrt(4 * 64) * 2**-24 * still.abs().max().item()
    torch.testing.assert_close(still[:, :7, 1:], still[:, :7, :1].expand(-1, -1, 2, -1, -1), atol=atol, rtol=0)
    assert still[:, 7:, 1:].abs().max() < 1e-4, "nothing moves: the temporal channels are silent"


def test_fitted_statistics_normalise_and_come_back_from_json() -> None:
    clip = ball_clip()
    codec = DctVideoCodec().fitted([clip, clip], floor=0.5)
    latents = codec.encode(clip)
    std, mean = latents.std((0, 2, 3, 4), correction=0), latents.mean((0, 2, 3, 4))
    assert mean.abs().max() < 1e-4
    assert std.max().item() == pytest.approx(1, abs=1e-4)
    again = build_video_codec("dct", state=json.loads(json.dumps(codec.state())))
    assert torch.equal(again.encode(clip), latents)
    assert again.fingerprint() == codec.fingerprint() != DctVideoCodec().fingerprint()
    # Fitting a fitted codec starts from the raw latents: it must not scale twice.
    torch.testing.assert_close(codec.fitted([clip]).encode(clip), latents, atol=1e-4, rtol=0)
    z = torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.encode(codec.decode(z)), z, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 3, 8, 16, 16), "4n.1 frames"),
        (torch.zeros(1, 3, 5, 20, 16), "multiples of 8 and 8, got 20x16"),
        (torch.zeros(3, 5, 16, 16), "batch, 3, frames"),
        (torch.zeros(1, 4, 5, 16, 16), "batch, 3, frames"),
        (torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8), "video_from_uint8"),
    ],
)
def test_wrong_videos_are_refused(video: torch.Tensor, message: str) -> None:
    with pytest.raises(MovaError, match=message):
        DctVideoCodec().encode(video)


def test_wrong_latents_and_statistics_are_refused() -> None:
    with pytest.raises(MovaError, match="16, t, h, w"):
        DctVideoCodec().decode(torch.zeros(1, 12, 2, 2, 2))
    with pytest.raises(MovaError, match="for 3 channels"):
        DctVideoCodec({"mean": [0, 0, 0], "std": [1, 1, 1]})
    with pytest.raises(MovaError, match="positive"):
        DctVideoCodec({"mean": [0.0] * 16, "std": [0.0] * 16})
    with pytest.raises(MovaError, match="'mean' and 'std'"):
        DctVideoCodec({"mean": [0.0] * 16})
    with pytest.raises(MovaError, match="constant"):
        DctVideoCodec().fitted([torch.zeros(1, 3, 5, 16, 16)])
    with pytest.raises(MovaError, match="no latents"):
        DctVideoCodec().fitted([])
    with pytest.raises(MovaError, match="NaN"):
        DctVideoCodec().fitted([torch.full((1, 3, 5, 16, 16), torch.nan)])


def test_bytes_to_video_and_back() -> None:
    frames = torch.randint(0, 256, (2, 5, 8, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = video_from_uint8(frames)
    assert video.shape == (2, 3, 5, 8, 16)
    assert torch.equal(video_to_uint8(video), frames)
    assert video_to_uint8(torch.full((3, 1, 1, 1), 1.7)).unique().tolist() == [255]
