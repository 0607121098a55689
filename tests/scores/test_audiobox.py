"""Audiobox-Aesthetics: windows and their weights, distances between frames, the released files' forms."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mova_engine.errors import MovaError
from mova_engine.scores import audiobox
from mova_engine.scores.networks.audiobox_axes import AXES, AudioboxNetwork, AudioboxSizes
from mova_engine.scores.networks.wavlm import WavlmSizes, distance_buckets

ENCODER = WavlmSizes(((4, 10, 5), *((4, 3, 2),) * 4, *((4, 2, 2),) * 2), 8, 2, 2, 12, 4, 2, 8, 20)
SCALES = {axis: audiobox.RatingScale(5.0 + i, 1.0 + i) for i, axis in enumerate(AXES)}


def test_windows_are_weighted_by_their_real_length():
    sounds = [torch.arange(1.0, 251.0), torch.arange(1.0, 101.0), torch.ones(30)]
    cut = audiobox.cut_windows(sounds, window=100)
    assert cut.sound.tolist() == [0, 0, 0, 1, 2]
    assert cut.weights.tolist() == pytest.approx([1, 1, 0.5, 1, 0.3])
    assert cut.samples[1, 0] == 101 and cut.samples[2, 49] == 250 and not cut.samples[2, 50:].any()
    assert cut.padding.sum(1).tolist() == [0, 0, 50, 0, 70] and bool(cut.padding[2, 50:].all())
    raw = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]]).expand(-1, 4)
    ratings = audiobox.weighted_ratings(raw, cut, SCALES)
    for i, axis in enumerate(AXES):
        expected = [mean * (1 + i) + 5 + i for mean in ((1 + 2 + 0.5 * 4) / 2.5, 8, 16)]
        assert [row[axis] for row in ratings] == pytest.approx(expected)
    for nothing in ([], [torch.zeros(10), torch.zeros(0)]):
        with pytest.raises(MovaError, match="no sound"):
            audiobox.cut_windows(nothing)


def test_a_sound_s_rating_depends_on_no_other_and_on_no_batch():
    network = AudioboxNetwork(AudioboxSizes(ENCODER)).eval()
    sounds = [torch.randn(n) * 0.1 for n in (200_000, 30_000)]
    together = audiobox.rate(network, SCALES, sounds)
    for sound, ratings in zip(sounds, together, strict=True):
        (alone,) = audiobox.rate(network, SCALES, [sound], batch=1)
        assert alone == pytest.approx(ratings, abs=1e-4)
    assert network(torch.zeros(1, 400), torch.zeros(1, 400, dtype=torch.bool)).shape == (1, 4)
    with pytest.raises(MovaError, match="399 samples are too few for this network: 400 are needed"):
        network(torch.zeros(1, 399), torch.zeros(1, 399, dtype=torch.bool))


def test_distances_fall_into_t5_s_buckets():
    """32 buckets up to 80: 16 for a sign, 8 of them exact, then 8 steps of a factor of 10^(1/8) from 8 to 80."""
    distances = torch.tensor([0, 1, 7, 8, 10, 11, 59, 60, 80, 500, -1, -7, -11, -500])
    found = distance_buckets(distances, 32, 80)
    assert found.tolist() == [0, 17, 23, 24, 24, 25, 30, 31, 31, 31, 1, 7, 9, 15]


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors"])
def test_released_files(tmp_path, name):
    sizes = AudioboxSizes(ENCODER, projection_layers=3, projection_norm=True)
    weights = AudioboxNetwork(sizes).state_dict()
    transform = {axis: {"mean": scale.mean, "std": scale.deviation} for axis, scale in SCALES.items()}
    path = tmp_path / name
    if name.endswith(".pt"):
        held = {"state_dict": {f"model.{key}": x for key, x in weights.items()}, "target_transform": transform}
        torch.save(held, path)
    else:
        save_file(weights, path)
        with pytest.raises(MovaError, match="needs its configuration beside it"):
            audiobox.load_audiobox(path, ENCODER)
        (tmp_path / "config.json").write_text(json.dumps({"target_transform": transform}))
    network, scales = audiobox.load_audiobox(path, ENCODER)
    assert scales == SCALES
    assert all(x.equal(weights[key]) for key, x in network.state_dict().items())
    with pytest.raises(MovaError, match="does not hold this network's weights"):
        audiobox.load_audiobox(path, WavlmSizes())


def test_weights_without_means_and_deviations_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(MovaError, match="without 'target_transform'"):
        audiobox.load_audiobox(tmp_path / "checkpoint.pt")
