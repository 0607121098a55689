"""Lip sync: closed forms of distances and windows, in the reference's convention and in the corrected one."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mova_engine.errors import MovaError
from mova_engine.scores.features.mfcc import mfcc
from mova_engine.scores.lip_sync import (
    ClipLips,
    LipFeatures,
    LipSync,
    best_track,
    lip_features,
    score_clip,
    score_lip_sync,
    shift_distances,
    window_count,
)
from mova_engine.scores.networks.s3fd import S3FD
from mova_engine.scores.networks.syncnet import SyncNet

GOLDEN_EVAL = Path(__file__).resolve().parents[1] / "data" / "golden_eval"


def features(windows, size=1024, seed=0):
    return torch.randn(windows, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("convention", ["mova", "corrected"])
def test_equal_features_are_as_far_apart_as_the_epsilon(convention):
    """sqrt(1024) 1e-6; every other shift compares unrelated features, so the median is theirs."""
    lip = features(60)
    scored = score_lip_sync(LipFeatures(lip, lip), convention=convention)
    assert scored.offset == 0 and scored.windows == 60
    assert scored.distance == pytest.approx(math.sqrt(1024) * 1e-6, rel=1e-5)
    mean = shift_distances(LipFeatures(lip, lip), convention=convention).nanmean(0)
    assert scored.confidence == pytest.approx(float(mean.median()), rel=1e-5)


@pytest.mark.parametrize("late", [-7, -1, 0, 4, 15])
@pytest.mark.parametrize("convention", ["mova", "corrected"])
def test_sound_that_is_late_by_k_pictures_gives_minus_k(late, convention):
    lip = features(80, 64)
    scored = score_lip_sync(LipFeatures(lip, lip.roll(late, 0)), convention=convention)
    assert scored.offset == -late


def test_zero_padding_rewards_short_clips_and_the_corrected_convention_does_not():
    """Unrelated features: with padding a clip of 16 windows is far better than one of 120, without it they agree."""
    pairs = [LipFeatures(features(n, 256, 1), features(n, 256, 2)) for n in (16, 120)]
    short, long = (score_lip_sync(pair) for pair in pairs)
    assert short.distance < 0.85 * long.distance
    short, long = (score_lip_sync(pair, convention="corrected") for pair in pairs)
    assert short.distance == pytest.approx(long.distance, rel=0.1)


def test_shifts_without_any_partner_have_no_say_when_corrected():
    """5 windows: shifts beyond 4 pair nothing."""
    lip = features(5, 32)
    distances = shift_distances(LipFeatures(lip, lip), convention="corrected")
    assert distances.shape == (5, 31)
    assert (~distances.isnan()).sum(0).tolist() == [max(0, 5 - abs(shift)) for shift in range(-15, 16)]
    assert score_lip_sync(LipFeatures(lip, lip), convention="corrected").offset == 0


@pytest.mark.parametrize(
    ("pictures", "samples", "mova", "corrected"),
    # 5 pictures need 20 columns, the last of which begins at 190 ms and ends at 215 ms; it may be partly padded.
    [
        (32, 20680, 27, 28),
        (20, 12799, 14, 15),
        (25, 16000, 20, 20),
        (25, 16400, 20, 21),
        (5, 16000, 0, 1),
        (4, 99, 0, 0),
    ],
)
def test_windows_of_a_clip(pictures, samples, mova, corrected):
    assert window_count(pictures, samples) == mova
    assert window_count(pictures, samples, "corrected") == corrected


def test_cepstra_are_python_speech_features():
    """Recorded for speech, for noise and for a sound shorter than a frame."""
    recorded = load_file(GOLDEN_EVAL / "case1_syncnet.safetensors")
    sounds = [name.removeprefix("in.mfcc.") for name in recorded if name.startswith("in.mfcc.")]
    assert len(sounds) == 3
    for name in sounds:
        made, expected = mfcc(recorded[f"in.mfcc.{name}"]), recorded[f"out.mfcc.{name}"]
        assert np.abs(made - expected).max() <= 1e-9 * np.abs(expected).max(), name
    assert np.isfinite(mfcc(np.zeros(700))).all()
    with pytest.raises(MovaError, match="one channel of samples"):
        mfcc(np.zeros((2, 700)))


@pytest.mark.networks
@torch.no_grad()
def test_windows_of_a_clip_are_those_of_each_window_alone():
    """A window's features do not depend on the batch it is in, and pictures that are not square are brought to size."""
    torch.manual_seed(0)
    network = SyncNet().eval()
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (8, 60, 44, 3), dtype=np.uint8)
    samples = rng.integers(-3000, 3000, 8 * 640, dtype=np.int16)
    together = lip_features(network, faces, samples)
    one = lip_features(network, faces, samples, batch_size=1)
    assert together.lip.shape == (3, 1024)
    torch.testing.assert_close(together.lip, one.lip, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.sound, one.sound, rtol=1e-4, atol=1e-5)
    assert (together.lip - lip_features(network, faces[..., ::-1], samples).lip).abs().max() > 1e-2


@pytest.mark.networks
def test_a_clip_without_a_face_has_no_score():
    """An untrained detector says 0.5 of each box, which is not enough."""
    detector, network = S3FD().eval(), SyncNet().eval()
    for layer in detector.conf:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    clip = np.zeros((21, 128, 128, 3), np.uint8)
    assert score_clip(detector, network, clip, np.zeros(21 * 640, np.int16)) == ClipLips((0,) * 21, ())
    assert best_track([]) is None
    with pytest.raises(MovaError, match="too small for the face detector"):
        score_clip(detector, network, clip[:, :100], np.zeros(21 * 640, np.int16))


def test_the_track_with_the_largest_difference_stands_for_a_clip():
    tracks = [LipSync(0, 2.1, 9.0, 1), LipSync(1, 5.3, 8.2, 1), LipSync(2, 5.9, 9.1, 1)]
    assert best_track(tracks) == tracks[1]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(MovaError, match="too short for lip sync"):
        lip_features(SyncNet(), np.zeros((5, 8, 8, 3), np.uint8), np.zeros(9999, np.int16))
    with pytest.raises(MovaError, match="do not pair"):
        shift_distances(LipFeatures(features(5), features(6)))
