"""`mova eval selftest`: every example that needs nothing holds, a wrong number is a miss, an absent file is named."""

import dataclasses

import numpy as np
import pytest
import torch
from lossless_clip import write_lossless
from tiny_networks import TinyWeights

from mova_engine.commands import eval_selftest
from mova_engine.data.media.write import write_mp4
from mova_engine.evaluation import selftest
from mova_engine.evaluation.selftest import read_examples, run_examples
from mova_engine.evaluation.selftest_checks import CHECKS, SelftestInputs
from mova_engine.scores.networks.syncnet import SyncNet
from mova_engine.scores.weights_folder import WeightsFolder
from source_tree import ROOT

# Seconds of CPU; the rest together takes less than one.
DEAR = {
    "syncnet_of_faces",
    "score_of_file",
    "shifted_sound",
    "sound_classes",
    "dnsmos",
    "inception_score",
    "frechet_bias",
    "lip_sync",
    "speech_lag",
}
EXAMPLES = read_examples()
MEDIA = ROOT / "tests" / "data" / "media"


@pytest.mark.parametrize("example", [x for x in EXAMPLES if x.check not in DEAR], ids=lambda x: x.name)
def test_an_example_that_needs_no_network_holds(example):
    (verdict,) = run_examples([example])
    assert verdict.state == "held", verdict


@pytest.mark.long
@pytest.mark.parametrize("example", [x for x in EXAMPLES if x.check in DEAR], ids=lambda x: x.name)
def test_a_dear_example_holds_where_its_files_are(example):
    (verdict,) = run_examples([example], media=MEDIA)
    if example.needs.weights or not all((MEDIA / name).exists() for name in example.needs.media):
        assert verdict.state == "absent" and all(name in verdict.reason for name in example.needs.media)
    else:
        assert verdict.state == "held", verdict


def test_every_check_is_an_example_and_every_number_can_miss():
    assert {example.check for example in EXAMPLES} == set(CHECKS)
    for example in EXAMPLES:
        assert example.expected and example.source and example.bound >= 0


def test_a_wrong_number_is_a_miss_and_ends_with_status_1(monkeypatch, capsys):
    example = next(x for x in EXAMPLES if x.check == "kl_divergence")
    absent = dataclasses.replace(example, needs=selftest.ExampleNeeds(packages=("no_such_package",)))
    monkeypatch.setattr(selftest, "read_examples", lambda: [example, absent])
    assert eval_selftest.main([]) == 0
    assert "1 held, 0 missed, 1 not tried" in capsys.readouterr().out
    monkeypatch.setitem(CHECKS, "kl_divergence", lambda given, inputs: {"kl": example.expected["kl"] + 2e-6})
    assert eval_selftest.main([]) == 1
    out = capsys.readouterr().out
    assert "missed" in out and "no_such_package" in out and example.source in out


@pytest.mark.long
def test_an_example_of_a_network_is_computed_where_its_weights_are(tmp_path):
    """Drawn weights give other numbers than the official ones: a miss, with numbers."""
    torch.save(SyncNet().state_dict(), tmp_path / "syncnet_v2.model")
    pictures = np.random.default_rng(0).integers(0, 255, (30, 96, 96, 3), np.uint8)
    sound = 0.1 * np.random.default_rng(1).standard_normal(30 * 1920).astype(np.float32)
    write_mp4(tmp_path / "example.mp4", pictures, sound, fps=25, sample_rate=48000)
    (tmp_path / "example.mp4").rename(tmp_path / "example.avi")
    example = next(x for x in EXAMPLES if x.check == "syncnet_of_faces")
    (verdict,) = run_examples([example], WeightsFolder(tmp_path), tmp_path)
    assert verdict.state == "missed" and verdict.got.keys() == example.expected.keys(), verdict.reason


@pytest.mark.long
@pytest.mark.parametrize(("start", "offset"), [(0.0, 1.6), (4.0, -1.6), (1.0, 0.0)])
def test_sound_is_taken_from_another_time_than_pictures(start, offset, tmp_path):
    """Light and noise at once, for the seventh of the segments that pictures are taken of: the tiny network counts the
    segments of 0.32 s between them, which it tells in steps of 0.2 s.
    """
    first = round(25 * start) + 2 + 6 * 8
    pictures = np.zeros((250, 256, 256, 3), np.uint8)
    pictures[first : first + 16] = 255
    sound = np.zeros(250 * 640, np.float32)
    sound[first * 640 :][:10240] = 0.1 * np.random.default_rng(0).standard_normal(10240)
    write_lossless(tmp_path / "clip.mkv", pictures, sound, rate=16000, fps=25)
    inputs = SelftestInputs({"clip.mkv": tmp_path / "clip.mkv"}, TinyWeights())
    found = CHECKS["shifted_sound"]({"media": "clip.mkv", "start": start, "offset": offset}, inputs)
    assert found == {"offset": pytest.approx(offset / 0.32 * 0.2)}
