"""Rotary tables: their geometry. Exact values are the recorded cases' business."""

import math

import pytest
import torch

from mova_engine.models.rope import aligned_video_positions, axis_dims, video_angles


@pytest.mark.parametrize(("head_dim", "dims"), [(128, (44, 42, 42)), (48, (16, 16, 16)), (64, (24, 20, 20))])
def test_axes_share_a_head_in_even_parts(head_dim, dims):
    assert axis_dims(head_dim) == dims
    assert sum(dims) == head_dim


def test_video_tokens_run_frame_major():
    angles = video_angles((2, 3, 4), 48)
    position = angles.view(2, 3, 4, 24)
    # The first frequency of each axis is 1, so that its angle is the position itself.
    assert position[1, 2, 3, 0] == 1
    assert position[1, 2, 3, 8] == 2
    assert position[1, 2, 3, 16] == 3


def test_without_bias_a_latent_frame_lies_four_pictures_after_the_last():
    positions = aligned_video_positions(49, 24.0, 50.0, first_frame_bias=False)
    assert math.isclose(positions[48], 400.0, rel_tol=1e-6)


def test_with_bias_the_first_latent_frame_is_one_picture():
    positions = aligned_video_positions(3, 24.0, 50.0, first_frame_bias=True)
    torch.testing.assert_close(positions, torch.tensor([0.0, 50 / 24, 5 * 50 / 24]))
