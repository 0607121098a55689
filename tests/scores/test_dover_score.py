"""DOVER: samplers, fragments of small pictures in both conventions, biases of windows, fused scores."""

import numpy as np
import pytest
import torch

from mova_engine.errors import MovaError
from mova_engine.scores.dover_score import (
    AESTHETIC_FRAMES,
    TECHNICAL_FRAMES,
    DoverScore,
    FragmentConfig,
    prepare_views,
    sample_frames,
    splice_fragments,
)
from mova_engine.scores.networks.video_swin import VideoSwin, _excluded, _fragment_distances

SMALL = FragmentConfig(rows=2, columns=3, size=4, aligned=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_mean_of_both_scales_scores_a_half():
    assert DoverScore(0.1107, -0.08285).overall == DoverScore(0.1107, -0.08285).technical == 0.5
    better = DoverScore(0.1107 + 0.07355, -0.08285)
    assert better.technical == pytest.approx(1 / (1 + np.exp(-1))) and better.aesthetic == 0.5
    assert better.overall == pytest.approx(1 / (1 + np.exp(-0.6104)))
    assert DoverScore(-1e4, 0).technical == pytest.approx(0)


def test_pictures_are_sampled_within_their_parts_and_go_on_at_the_beginning():
    technical = sample_frames(240, TECHNICAL_FRAMES, np.random.RandomState(1))
    assert len(technical) == 96 and set(np.diff(technical[:32])) == {2}
    assert all(80 * part <= technical[32 * part] < 80 * part + 16 for part in range(3))
    aesthetic = sample_frames(240, AESTHETIC_FRAMES, np.random.RandomState(1))
    assert all(7 * part <= frame < 7 * part + 5 for part, frame in enumerate(aesthetic))
    assert sample_frames(50, TECHNICAL_FRAMES, np.random.RandomState(1))[:32] == [2 * i % 50 for i in range(32)]
    assert sample_frames(1, AESTHETIC_FRAMES, np.random.RandomState(1)) == [0] * 32
    with pytest.raises(MovaError, match="without pictures"):
        sample_frames(0, AESTHETIC_FRAMES, np.random.RandomState(1))


def test_fragments_are_pieces_of_the_picture_at_places_that_stay_for_a_group():
    """A picture whose pixels say where they are."""
    place = torch.arange(13 * 21, dtype=torch.int64).reshape(13, 21).remainder(251).to(torch.uint8)
    pictures = place.expand(3, 4, 13, 21) + torch.arange(4, dtype=torch.uint8)[None, :, None, None]
    made, places = splice_fragments(pictures, generator(), SMALL)
    assert made.shape == (3, 4, 8, 12) and places.top.shape == (2, 3, 2)
    for t in range(4):
        for i in range(2):
            for j in range(3):
                top, left = int(places.top[i, j, t // 2]), int(places.left[i, j, t // 2])
                assert 6 * i <= top < 6 * i + 2 and 7 * j <= left < 7 * j + 3
                expected = pictures[:, t, top : top + 4, left : left + 4]
                assert torch.equal(made[:, t, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4], expected)
    again, _ = splice_fragments(pictures, generator(), SMALL)
    other, _ = splice_fragments(pictures, generator(1), SMALL)
    assert torch.equal(made, again) and not torch.equal(made, other)


def test_of_a_small_picture_the_published_fragments_see_the_upper_left_and_the_corrected_ones_all():
    ramp = torch.linspace(0, 255, 6).to(torch.uint8).expand(3, 2, 4, 6)
    published, _ = splice_fragments(ramp, generator(), SMALL)
    corrected, _ = splice_fragments(ramp, generator(), SMALL, "corrected")
    assert published.shape == corrected.shape == (3, 2, 8, 12)
    assert int(published.max()) < 140 and int(corrected.max()) > 250
    with pytest.raises(MovaError, match="smaller than a fragment of 4"):
        splice_fragments(ramp[:, :, :, :3], generator(), SMALL)
    with pytest.raises(MovaError, match="no multiple of 2"):
        splice_fragments(ramp.repeat(1, 2, 2, 2)[:, :3], generator(), SMALL)


def test_tokens_from_opposite_edges_do_not_see_each_other():
    """Two windows of 7 columns, shifted by 3: the last one holds 4 columns of the end and 3 of the beginning."""
    excluded = _excluded((1, 7, 14), (1, 7, 7), (0, 0, 3), torch.device("cpu"))
    assert excluded.shape == (2, 49, 49) and not excluded[0].any()
    columns = torch.arange(49).remainder(7)
    across = (columns[:, None] >= 4) != (columns[None] >= 4)
    assert torch.equal(excluded[1], -100.0 * across)


def test_fragments_are_counted_in_rows_and_columns():
    """14 x 14 places hold 7 x 7 fragments of 2 x 2."""
    distances = _fragment_distances((1, 14, 14), (1, 7, 7), (0, 0, 0), torch.device("cpu"))
    place = torch.cartesian_prod(torch.arange(7), torch.arange(7)) // 2
    expected = (place[:, None] - place[None]).abs().sum(-1).float()
    assert torch.equal(distances[0], expected)


@torch.no_grad()
def test_the_technical_network_takes_sizes_that_windows_do_not_divide():
    torch.manual_seed(0)
    network = VideoSwin().eval()
    video = torch.randn(2, 3, 2, 40, 36)
    both = network(video)
    assert both.shape == (2, 768, 1, 2, 2)
    torch.testing.assert_close(both[1:], network(video[1:]), rtol=1e-4, atol=1e-5)


def test_what_the_networks_see_of_a_video_depends_on_the_seed_alone():
    video = torch.randint(0, 256, (40, 3, 240, 230), generator=generator(), dtype=torch.uint8)
    (clips, view), again, other = (prepare_views(video, seed) for seed in (0, 0, 1))
    assert clips.shape == (3, 3, 32, 224, 224) and view.shape == (3, 32, 224, 224)
    assert torch.equal(clips, again[0]) and torch.equal(view, again[1])
    assert not torch.equal(clips, other[0])
