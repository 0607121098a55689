"""The ImageBind score: clips of sound, crops and pairs of pictures, the checkpoint's other modalities."""

from pathlib import Path

import pytest
import torch

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.recipe_weights import recipe_shapes
from mova_engine.scores.imagebind_score import (
    audio_embedding,
    clip_samples,
    frame_count,
    prepare_pictures,
    prepare_sound,
    score_imagebind,
    video_embedding,
)
from mova_engine.scores.networks.imagebind import ImageBind, ImageBindConfig, towers_of

GOLDEN_EVAL = Path(__file__).resolve().parents[1] / "data" / "golden_eval"
TINY = ImageBindConfig(24, 1, 2, 16, 1, 2, 12)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 10


def test_clips_of_sound_are_a_third_of_the_spare_time_apart():
    assert clip_samples(80000) == [(0, 32000), (16000, 48000), (32000, 64000)]
    assert clip_samples(20000) == [(0, 32000)] * 3
    assert [frame_count(seconds) for seconds in (7.9, 8.0, 1.9)] == [3, 4, 0]


def test_published_clips_hear_what_was_subtracted_from_earlier_ones_and_corrected_ones_do_not():
    """Sound with a constant 0.3: where clips overlap, the second one finds it gone."""
    sound = noise(1, 48000) / 100 + 0.3
    before = sound.clone()
    published, corrected = prepare_sound(sound, 16000), prepare_sound(sound, 16000, "corrected")
    assert torch.equal(sound, before), "the caller's samples stay"
    torch.testing.assert_close(published.samples[:, :5000], before[:, :5000] - 0.3, atol=1e-3, rtol=0)
    assert torch.equal(corrected.samples, before)
    torch.testing.assert_close(published.mel[0], corrected.mel[0])
    # Kaldi's frames lose their own mean: only those across the edge of a subtraction differ.
    assert (published.mel[1] - corrected.mel[1]).abs().max() > 0.1


def test_published_sound_is_the_first_channel_less_the_mean_of_all():
    sound = torch.stack([noise(48000, seed=1), noise(48000, seed=2)])
    other = torch.stack([sound[0], sound[1].flip(0)])
    published = [prepare_sound(samples, 16000).mel for samples in (sound, other)]
    torch.testing.assert_close(*published, atol=5e-2, rtol=0)  # a frame loses its own mean, so little is left of theirs
    corrected = [prepare_sound(samples, 16000, "corrected").mel for samples in (sound, other)]
    assert (corrected[0] - corrected[1]).abs().max() > 0.1
    short = prepare_sound(sound[:, :16000], 16000).mel
    assert short.shape == (3, 128, 204)
    assert short[..., 98:].unique().tolist() == [pytest.approx(4.268 / 9.138)]
    with pytest.raises(MovaError, match="too short for the ImageBind score"):
        prepare_sound(sound[:, :300], 16000)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32)])
def test_crops_lie_at_the_start_the_middle_and_the_end_of_the_longer_side(height, width):
    """A ramp along the longer side: each crop begins where the one before has its middle."""
    ramp = torch.linspace(0, 1, 64).reshape(1, 1, 1, 64).expand(2, 3, 32, 64)
    crops = prepare_pictures(ramp if width > height else ramp.transpose(2, 3))
    assert crops.shape == (3, 2, 3, 224, 224)
    along = crops[:, 0, 0].mean(1) if width > height else crops[:, 0, 0].mean(2)
    torch.testing.assert_close(along[1, :100], along[0, 112:212], atol=2e-2, rtol=0)
    torch.testing.assert_close(along[2, :100], along[1, 112:212], atol=2e-2, rtol=0)


@torch.no_grad()
def test_embeddings_are_means_of_unit_vectors_over_pairs_and_crops():
    torch.manual_seed(0)
    network = ImageBind(TINY).eval()
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    crops, mel = noise(2, 3, 3, 3, 224, 224), noise(2, 3, 128, 204, seed=3)
    pairs = [network.vision(crops[:, c, p : p + 2].transpose(1, 2)) for p in range(2) for c in range(3)]
    assert all(torch.allclose(pair.norm(dim=-1), torch.ones(2)) for pair in pairs)
    torch.testing.assert_close(video_embedding(network, crops), torch.stack(pairs).mean(0))
    doubled = network.vision(crops[:, 0, :1].expand(-1, 2, -1, -1, -1).transpose(1, 2))
    torch.testing.assert_close(video_embedding(network, crops[:, :1, :1]), doubled)
    audio = audio_embedding(network, mel)
    assert torch.allclose(network.audio(mel[:, :1]).norm(dim=-1), torch.tensor(20.0))
    assert score_imagebind(audio, audio / 20).tolist() == [pytest.approx(1)] * 2
    with pytest.raises(MovaError, match="ImageBind reads 228 patches"):
        network.audio(mel[:, :1, :, :100])


def test_the_official_checkpoint_s_other_modalities_are_left_out():
    official = recipe_shapes(GOLDEN_EVAL / "names_imagebind_huge.json")
    with torch.device("meta"):
        checkpoint = {name: torch.empty(shape) for name, shape in official.items()}
        ours = ImageBind().state_dict()
    kept = towers_of(checkpoint)
    assert {name: list(x.shape) for name, x in ours.items()} == {name: official[name] for name in kept}
    assert {name.split(".")[1] for name in official.keys() - kept.keys()} == {"text", "depth", "thermal", "imu"}
