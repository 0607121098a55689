"""Face tracks and crops: gaps, several faces, least sizes, edges, in both conventions."""

import numpy as np
import pytest

from mova_engine.errors import MovaError
from mova_engine.scores import face_boxes
from mova_engine.scores.face_boxes import Face
from mova_engine.scores.face_tracks import (
    CropConfig,
    FaceTrack,
    TrackConfig,
    crop,
    crop_rectangles,
    find_tracks,
    mouth_pictures,
    smooth,
)

SHORT = TrackConfig(least_boxes=3, least_size=50)


def face(frame, x, y=100.0, size=120.0):
    return Face(frame, (x, y, x + size, y + size), 0.99)


def test_a_gap_is_filled_linearly_and_too_long_a_one_ends_a_track():
    seen = [0, 1, 2, 6, 7, 40, 41, 42, 43]
    shot = [[face(i, 5.0 * min(i, 7))] if i in seen else [] for i in range(44)]
    first, second = find_tracks(shot, SHORT)
    assert first.frames.tolist() == list(range(8)) and second.frames.tolist() == [40, 41, 42, 43]
    assert first.boxes[:, 0] == pytest.approx(5.0 * np.arange(8))
    assert first.sound_seconds() == (0.0, 8 / 25)


def test_the_reference_skips_the_next_face_and_the_corrected_convention_takes_the_nearest():
    """Two faces that overlap each other: the second one of a picture belongs to another person."""
    shot = [[face(i, 30), face(i, 0)] if i % 2 else [face(i, 0), face(i, 30)] for i in range(6)]
    took = find_tracks(shot, SHORT)[0]
    assert sorted(set(took.boxes[:, 0])) == [0, 30]
    nearest = find_tracks(shot, SHORT, "corrected", height=720)
    assert [sorted(set(track.boxes[:, 0])) for track in nearest] == [[0], [30]]


def test_the_least_size_counts_pixels_or_a_share_of_the_height():
    shot = [[face(i, 0, size=80.0)] for i in range(30)]
    assert not find_tracks(shot)
    assert len(find_tracks(shot, convention="corrected", height=360)) == 1
    assert not find_tracks(shot, convention="corrected", height=1080)
    assert not find_tracks(shot[:20], convention="corrected", height=360), "20 boxes are too few"
    with pytest.raises(MovaError, match="give its height"):
        find_tracks(shot, convention="corrected")


def test_smoothing_pulls_the_ends_only_in_the_reference_s_convention():
    track = FaceTrack(np.arange(40), np.tile([100.0, 100.0, 200.0, 200.0], (40, 1)))
    assert smooth(track).x[[5, 6, 33, 34]].tolist() == [150.0, 150.0, 150.0, 150.0]
    moving = FaceTrack(np.arange(40), track.boxes + np.arange(40)[:, None])
    assert smooth(moving).x[0] == 150.0 and smooth(moving).x[-1] == 183.0
    assert smooth(moving, convention="corrected").x[-1] == 189.0


def test_a_crop_reaches_beyond_the_picture_in_grey():
    """Half side 20 around (10, 10): 20 above, 36 below, 28 to either side."""
    picture = np.arange(60 * 50 * 3, dtype=np.int64).reshape(60, 50, 3).astype(np.uint8)
    track = FaceTrack(np.zeros(13, int), np.tile([-10.0, -10.0, 30.0, 30.0], (13, 1)))
    rectangle = crop_rectangles(smooth(track))[6]
    assert rectangle.tolist() == [36, 26, 82, 18, 74]
    padded = np.pad(picture, ((36, 36), (36, 36), (0, 0)), constant_values=110)
    assert np.array_equal(crop(picture, rectangle), padded[26:82, 18:74])
    assert mouth_pictures([picture], track, CropConfig(side=32)).shape == (13, 32, 32, 3)
    with pytest.raises(MovaError, match="lies outside"):
        crop(picture, np.array([0, 70, 80, 0, 10]))


@pytest.mark.parametrize("limit", [None, 40])
def test_suppression_in_blocks_is_that_of_one_box_after_the_other(limit):
    """300 boxes are several blocks; some have no area."""
    rng = np.random.default_rng(0)
    corners, sides = rng.random((300, 2)), rng.random((300, 2)) * 0.2
    sides[::50] = 0
    boxes = np.hstack((corners, corners + sides)).astype(np.float32)
    kept = []
    for i in range(len(boxes)):
        with np.errstate(invalid="ignore"):
            if all(_shared(boxes[i], boxes[j]) <= 0.3 for j in kept):
                kept.append(i)
    assert 150 < len(kept) < 300
    assert face_boxes._suppress(boxes, 0.3, limit).tolist() == kept[:limit]


def _shared(a, b):
    across, down = (np.maximum(np.minimum(a[k + 2], b[k + 2]) - np.maximum(a[k], b[k]), 0) for k in (0, 1))
    area = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (a, b))
    return across * down / (area - across * down)
