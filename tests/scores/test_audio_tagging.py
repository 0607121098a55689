"""What PANNs' networks hear in each convention, with a network of a few channels."""

import math

import numpy as np
import pytest
import torch

from mova_engine.errors import MovaError
from mova_engine.scores.audio_tagging import clips_inception_score, features_input, padded_or_cut, tag_clips
from mova_engine.scores.distances import inception_score, probabilities_of_outputs
from mova_engine.scores.networks.cnn14 import Cnn14, PannsConfig


def tagger(rate):
    return Cnn14(PannsConfig(rate, 128, 3200, mels=16, classes=7, channels=(4, 6))).eval()


def clips(*seconds, rate=32000):
    return [torch.randn(int(rate * s)) * 0.1 for s in seconds]


def test_input_of_features_is_mono_without_mean_and_cut():
    t = torch.arange(48000) / 48000
    sound = torch.stack([torch.sin(2 * math.pi * 440 * t), torch.zeros(48000)]) + 0.25
    found = features_input(sound, 48000, seconds=0.5)
    assert found.shape == (8000,)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(8000) / 16000) / 2
    torch.testing.assert_close(found[100:], expected[100:], atol=2e-3, rtol=0)


def test_conventions_differ_in_padding_and_distribution():
    network, sound = tagger(32000), clips(0.5, 0.7, 10.5)
    padded = tag_clips(network, [padded_or_cut(x, 320000) for x in sound])
    expected = inception_score(probabilities_of_outputs(padded.clipwise.numpy()))
    assert clips_inception_score(network, sound, convention="mova") == pytest.approx(expected, rel=1e-6)
    logits = tag_clips(network, sound).logits.double()
    p = logits.softmax(1).numpy()
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert clips_inception_score(network, sound, convention="corrected") == pytest.approx(expected, rel=1e-6)


def test_a_convention_asks_for_its_rate_and_for_clips():
    with pytest.raises(MovaError, match="needs Cnn14 at 16000 Hz"):
        clips_inception_score(tagger(32000), clips(0.5), convention="av-benchmark")
    with pytest.raises(MovaError, match="n >= 10"):
        clips_inception_score(tagger(16000), clips(0.5, rate=16000), convention="av-benchmark")
    with pytest.raises(MovaError, match="no clip"):
        tag_clips(tagger(32000), [])
    with pytest.raises(MovaError, match="too few"):
        tag_clips(tagger(32000), [torch.zeros(64)])
