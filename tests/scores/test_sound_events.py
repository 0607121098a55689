"""What EAT hears of a sound, its positions, and groups of classes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mova_engine.errors import MovaError
from mova_engine.scores.features.kaldi import fbank
from mova_engine.scores.networks.eat import Eat, EatSizes
from mova_engine.scores.sound_events import SPEECH, eat_input, event_probabilities, strongest

WEIGHTS = Path(__file__).resolve().parents[1] / "data" / "golden_eval" / "weights_eat_tiny.safetensors"
SIZES = EatSizes(8, 1, 2, 40, frames=48, longest=4)


def test_positions_are_those_of_the_checkpoints():
    recorded = load_file(WEIGHTS)["model.modality_encoders.IMAGE.fixed_positional_encoder.positions"]
    sizes = EatSizes(recorded.shape[2], 1, 2, 3, longest=recorded.shape[1] // 8)
    table = Eat(sizes).state_dict()["model.modality_encoders.IMAGE.fixed_positional_encoder.positions"]
    torch.testing.assert_close(table, recorded, atol=2e-6, rtol=0)


def test_sound_is_cut_or_filled_before_it_is_normalised():
    sound = torch.randn(48000) * 0.1 + 0.3
    mel = fbank(sound - sound.mean(), mels=128)
    torch.testing.assert_close(eat_input(sound, 16000, SIZES), (mel[:48] + 4.268) / 9.138, atol=1e-6, rtol=0)
    short = eat_input(sound[:3200], 16000, SIZES)
    assert short.shape == (48, 128)
    assert short[18:].unique().tolist() == [pytest.approx(4.268 / 9.138)]
    assert short[:18].max() > short[18:].max() or short[:18].min() < short[18:].min()
    with pytest.raises(MovaError, match="less than the 25 ms"):
        eat_input(torch.zeros(300), 16000, SIZES)


def test_probabilities_of_groups_of_classes():
    network = Eat(SIZES).eval()
    found = event_probabilities(network, [torch.randn(n) for n in (24000, 6000)], 48000)
    assert found.shape == (2, 40) and found.min() > 0 and found.max() < 1
    assert strongest(found, SPEECH).tolist() == [max(row[:6].tolist()) for row in found]
    with pytest.raises(MovaError, match="80 frames of a spectrum are more than this network's 64"):
        network(torch.zeros(1, 80, 128))
    with pytest.raises(MovaError, match="no sound"):
        event_probabilities(network, [], 16000)
