"""The embedded audio codec: exact round trip of latents, clicks that stay in place, and what it refuses."""

import json
import math

import pytest
import torch

from mova_engine.codecs import AudioCodec, build_audio_codec
from mova_engine.codecs.toy.mdct_audio import MdctAudioCodec, dct4_matrix
from mova_engine.errors import MovaError

RATE = 48000


def click(frequency: float, at: float = 0.5, frames: int = 69) -> torch.Tensor:
    """A carrier that starts at `at` seconds and decays in 35 ms: [1, 1, frames * 960]."""
    t = torch.arange(frames * 960, dtype=torch.float64) / RATE
    envelope = torch.exp(-(t - at).clamp_min(0) / 0.035) * (t >= at)
    return (0.5 * envelope * torch.sin(2 * math.pi * frequency * t)).float()[None, None]


@pytest.mark.parametrize("frames", [1, 2, 69])
def test_latents_survive_decoding_and_encoding(frames: int) -> None:
    z = torch.randn(2, 128, frames, generator=torch.Generator().manual_seed(frames))
    codec = MdctAudioCodec()
    audio = codec.decode(z)
    assert audio.shape == (2, 1, frames * 960)
    assert isinstance(codec, AudioCodec)
    torch.testing.assert_close(codec.encode(audio), z, rtol=0, atol=1e-5)


def test_it_is_the_mdct_with_a_sine_window() -> None:
    """An inner frame equals the textbook sum over 1920 windowed samples."""
    codec = MdctAudioCodec()
    audio = torch.randn(1, 1, 4 * 960, generator=torch.Generator().manual_seed(0))
    n = torch.arange(1920, dtype=torch.float64)
    k = torch.arange(128, dtype=torch.float64)[:, None]
    window = torch.sin(math.pi / 1920 * (n + 0.5))
    # Frame 2 owns samples 1920..2880; its window reaches 480 further on both sides.
    segment = audio[0, 0, 2 * 960 - 480 : 3 * 960 + 480].double()
    basis = math.sqrt(2 / 960) * torch.cos(math.pi / 960 * (n + 0.5 - 480) * (k + 0.5))
    expected = basis @ (window * segment) / 0.25
    # What 960 additions in float32 are off by, each by half a unit of the result, at random.
    atol = math.sqrt(960) * 2**-24 * expected.abs().max().item()
    torch.testing.assert_close(codec.encode(audio)[0, :, 2].double(), expected, rtol=0, atol=atol)


def test_all_960_coefficients_would_be_lossless() -> None:
    matrix = dct4_matrix(960, 960)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(960, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("frequency", [500, 1000, 2250])
def test_a_click_keeps_its_place_and_pitch(frequency: float) -> None:
    audio, codec = click(frequency), MdctAudioCodec()
    back = codec.decode(codec.encode(audio))
    noise = (back - audio).square().sum()
    assert 10 * math.log10((audio.square().sum() / noise).item()) > 25
    before = back[0, 0, : RATE // 2 - 96]
    assert before.abs().max() < 0.05, "no echo more than 2 ms ahead of the click"


def test_sounds_are_padded_to_whole_frames() -> None:
    codec, audio = MdctAudioCodec(), click(1000)[..., 22000:26000]
    assert codec.encode(audio).shape == (1, 128, 5)
    padded = torch.nn.functional.pad(audio, (0, 5 * 960 - 4000))
    assert torch.equal(codec.encode(audio), codec.encode(padded))


def test_fitted_scale_follows_the_loudest_channel_and_comes_back_from_json() -> None:
    sounds = [click(f, at=0.2 * i) for i, f in enumerate((500, 1000, 2250))]
    codec = MdctAudioCodec().fitted(sounds)
    std = torch.cat([codec.encode(s) for s in sounds], 2).std((0, 2), correction=0)
    raw = torch.cat([MdctAudioCodec().encode(s) for s in sounds], 2).std((0, 2), correction=0)
    # 0.6 / max(channel std, 0.5 x largest std), the mean left alone (it is not exactly zero, hence the tolerance).
    torch.testing.assert_close(std, 0.6 * raw / raw.clamp_min(0.5 * raw.max()), rtol=1e-2, atol=1e-3)
    assert set(codec.state()["mean"]) == {0.0}
    again = build_audio_codec("mdct", state=json.loads(json.dumps(codec.state())))
    assert torch.equal(again.encode(sounds[0]), codec.encode(sounds[0]))
    assert again.fingerprint() == codec.fingerprint() != MdctAudioCodec().fingerprint()
    z = torch.randn(1, 128, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.encode(codec.decode(z)), z, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(1, 2, 960), "batch, 1, samples"),
        (torch.zeros(1, 960), "batch, 1, samples"),
        (torch.zeros(1, 1, 0), "batch, 1, samples"),
        (torch.zeros(1, 1, 960, dtype=torch.int16), "floating point"),
    ],
)
def test_wrong_sounds_are_refused(audio: torch.Tensor, message: str) -> None:
    with pytest.raises(MovaError, match=message):
        MdctAudioCodec().encode(audio)


def test_wrong_latents_are_refused() -> None:
    with pytest.raises(MovaError, match="batch, 128, t"):
        MdctAudioCodec().decode(torch.zeros(1, 64, 3))
