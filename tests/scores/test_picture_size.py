"""Resizing: OpenCV's numbers, recorded and by their formula; sizes; crops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mova_engine.errors import MovaError
from mova_engine.scores.features.picture_size import (
    centre_crop,
    resize_bilinear_u8,
    resize_shorter_side,
    scale_bilinear_u8,
)

GOLDEN_EVAL = Path(__file__).resolve().parents[1] / "data" / "golden_eval"


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("case", "given", "resized", "step"),
    [
        ("case1_syncnet", "in.resize.frame", "out.resize.frame", 5),
        ("case1_faces", "out.crop.face0", "out.crop.face0_224", 6),
        ("case1_faces", "out.crop.face6", "out.crop.face6_224", 6),
    ],
)
def test_8_bit_bilinear_is_opencv_s(case, given, resized, step):
    with safe_open(GOLDEN_EVAL / f"{case}.safetensors", "numpy") as recorded:
        made = resize_bilinear_u8(recorded.get_tensor(given), 224, 224)
        assert np.array_equal(made[::step, ::step], recorded.get_tensor(resized))


def test_a_quarter_of_the_size_is_the_mean_of_the_four_middle_pixels():
    """Places 4 x + 1.5: all weights are a half. 361 and 642 are no multiples of 4: the step stays 4."""
    picture = noise(361, 642, 3)
    made = scale_bilinear_u8(picture, 0.25)
    assert made.shape == (90, 160, 3)
    middle = [picture[i::4, j::4][:90, :160].astype(int) for i in (1, 2) for j in (1, 2)]
    assert np.abs(made - sum(middle) / 4).max() <= 0.5
    assert np.abs(resize_bilinear_u8(picture, 90, 160) - sum(middle) / 4).max() > 10


def test_half_of_the_size_is_the_mean_of_2_by_2_rounded_up():
    picture = noise(6, 8, 3)
    expected = (picture.reshape(3, 2, 4, 2, 3).sum((1, 3), dtype=int) + 2) // 4
    assert np.array_equal(resize_bilinear_u8(picture, 3, 4), expected)
    assert np.array_equal(scale_bilinear_u8(picture, 0.5), expected)
    assert np.array_equal(resize_bilinear_u8(picture, 6, 8), picture)


def test_the_shorter_side_gets_its_size_and_the_middle_is_cut_out():
    """Odd remainders are halved to even: 225 - 224 begins at 0, 227 - 224 at 2."""
    assert resize_shorter_side(torch.zeros(1, 3, 36, 64), 224).shape == (1, 3, 224, 398)
    assert resize_shorter_side(torch.zeros(2, 5, 3, 70, 45), 224).shape == (2, 5, 3, 348, 224)
    rows = torch.arange(227.0)[:, None].expand(-1, 227)
    assert centre_crop(rows, 224)[0, 0] == 2
    assert centre_crop(rows[:225, :225], 224)[0, 0] == 0


def test_what_cannot_be_resized_is_refused():
    with pytest.raises(MovaError, match="expected an 8-bit picture"):
        resize_bilinear_u8(noise(4, 4, 3).astype(np.float32), 2, 2)
    with pytest.raises(MovaError, match="cannot resize a picture of 4 x 4 to 0 x 2"):
        resize_bilinear_u8(noise(4, 4, 3), 0, 2)
    with pytest.raises(MovaError, match="cannot crop 5 x 5"):
        centre_crop(torch.zeros(4, 9), 5)
