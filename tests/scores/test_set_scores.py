"""Numbers of sets from the evidence of clips: closed forms, directions, what is too few."""

import numpy as np
import pytest

from mova_engine.errors import MovaError
from mova_engine.ops import resolve
from mova_engine.scores.score_table import SCORES
from mova_engine.scores.set_scores import (
    set_frechet_distance,
    set_inception_score,
    set_kernel_distance,
    set_kl_divergence,
    set_split_inception_score,
)


def logits(*rows):
    return [{"logits": np.array(row, np.float32)} for row in rows]


def features(count, width, seed=0, shift=0.0):
    drawn = np.random.default_rng(seed).standard_normal((count, width)) + shift
    return [{"embedding": row.astype(np.float32)} for row in drawn]


@pytest.mark.parametrize("convention", ["mova", "corrected"])
def test_clips_of_as_many_classes_have_that_inception_score(convention):
    certain = logits(*(15 * np.eye(7)[i % 7] - 15 * (1 - np.eye(7)[i % 7]) for i in range(21)))
    assert set_inception_score(certain, convention) == pytest.approx(7, rel=1e-3)
    assert set_inception_score(logits(*np.zeros((5, 7))), convention) == pytest.approx(1)
    assert set_split_inception_score(certain * 100, convention) == pytest.approx(7, rel=0.05)


def test_what_published_code_makes_nan_is_a_reason():
    with pytest.raises(MovaError, match="probability 1 in float32"):
        set_inception_score(logits([40.0, 0.0], [0.0, 40.0]), "mova")
    assert set_inception_score(logits([40.0, 0.0], [0.0, 40.0]), "corrected") == pytest.approx(2)
    with pytest.raises(MovaError, match="needs 10 clips, the set has 9"):
        set_split_inception_score(logits(*np.zeros((9, 3))), "av-benchmark")
    with pytest.raises(MovaError, match="no clip"):
        set_inception_score([], "corrected")


def test_kl_is_of_the_reference_first():
    """p = (3/4, 1/4) of the reference against q = (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2."""
    generated, reference = logits([0.0, 0.0]), logits([np.log(3.0), 0.0])
    closed = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert set_kl_divergence(generated, reference, "mova") == pytest.approx(closed)
    assert set_kl_divergence(reference, reference, "mova") == 0


def test_distances_of_a_set_to_itself_and_to_one_that_is_shifted():
    """A shift by s in each of d directions is a Frechet distance of d s squared."""
    here, there = features(100, 8), features(100, 8, shift=0.5)
    assert set_frechet_distance(here, here, "mova") == (pytest.approx(0, abs=1e-6), "")
    assert set_frechet_distance(here, there, "mova")[0] == pytest.approx(8 * 0.25, rel=1e-3)
    assert set_kernel_distance(features(100, 8, seed=1), here, "mova") == pytest.approx(0, abs=0.1)
    assert set_kernel_distance(here, there, "mova") > 0.1
    assert "15 rows are few for 8 dimensions" in set_frechet_distance(here[:15], there, "mova")[1]


def test_clips_may_have_several_rows():
    """VGGish describes each second of a clip."""
    clips = [{"embedding": np.stack([each["embedding"] for each in features(5, 4, seed)])} for seed in range(40)]
    rows = [{"embedding": row} for clip in clips for row in clip["embedding"]]
    other = features(100, 4, 99)
    assert set_frechet_distance(clips, other, "mova") == set_frechet_distance(rows, other, "mova")


# What scores of transcripts keep: errors and length.
RATES = ("cpcer", "cer", "wer")


def test_declared_numbers_of_sets_can_be_computed():
    declared = [number for score in SCORES.values() for number in score.set_numbers]
    assert {"fd_panns", "kid_panns", "kl_panns", "is_panns"} <= {number.name for number in declared}
    rng = np.random.default_rng(0)
    sets = [
        [
            {"embedding": rng.standard_normal(6), "logits": rng.standard_normal(9), **dict.fromkeys(RATES, (1, 9))}
            for _ in range(12)
        ]
        for _ in range(2)
    ]
    for number in declared:
        found = resolve(number.target)(*(sets if number.reference else sets[:1]), "corrected")
        assert np.isfinite(found[0] if isinstance(found, tuple) else found), number.name


def test_a_set_of_few_clips_is_at_no_distance_of_itself():
    """Its covariance has rank 4 in 300 dimensions."""
    few = features(5, 300)
    assert set_frechet_distance(few, few, "mova")[0] == pytest.approx(0, abs=1e-9)
    wide, narrow = features(1000, 6), features(1000, 6, seed=1)
    for clip in narrow:
        clip["embedding"][2:] = 0
    # Independent directions of deviation 1, and of 1 and 0: (1 - 0) squared for each of the four.
    assert set_frechet_distance(wide, narrow, "mova")[0] == pytest.approx(4, rel=0.05)
