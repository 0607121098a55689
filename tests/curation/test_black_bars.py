"""Black bars to the pixel; what is merely dark is kept."""

import numpy as np
import pytest

from mova_engine.curation.black_bars import (
    as_crop,
    boxes_of_shots,
    kept_lines,
    lit_lines,
    shaped,
    union,
    upright_box,
)
from mova_engine.data.media.orientation import turn_upright
from mova_engine.scores.clip_window import stored_box

pytest.importorskip("cv2")


def picture(top=0, bottom=0, left=0, right=0, light=150, size=(120, 200), seed=0):
    drawn = np.random.default_rng(seed)
    made = np.clip(drawn.normal(light, 25, size), 0, 255).astype(np.uint8)
    made[:top], made[size[0] - bottom :] = 3, 3
    made[:, :left], made[:, size[1] - right :] = 3, 3
    return made


def kept(*pictures):
    ((box),) = boxes_of_shots([[lit_lines(each) for each in pictures]], [1.0])
    return box


@pytest.mark.parametrize(
    ("bars", "expected"),
    [
        ({}, (0, 0, 200, 120)),
        ({"top": 14, "bottom": 14}, (0, 14, 200, 106)),
        ({"top": 15, "bottom": 15}, (0, 16, 200, 104)),
        ({"left": 30, "right": 32}, (30, 0, 168, 120)),
        ({"top": 10, "bottom": 10, "left": 20, "right": 20}, (20, 10, 180, 110)),
        ({"top": 1, "bottom": 1}, (0, 0, 200, 120)),  # too little
        ({"top": 20, "bottom": 8}, (0, 0, 200, 120)),  # unlike
        ({"top": 20}, (0, 0, 200, 120)),
    ],
)
def test_bars_are_cut_to_the_pixel(bars, expected):
    assert kept(picture(**bars)) == expected


def test_a_line_that_is_lit_once_is_kept():
    """Titles in a bar, in one of three pictures, leave the bars unlike: nothing is cut off."""
    titled = picture(top=14, bottom=14, seed=1)
    titled[108:114, 40:160] = 200
    assert kept(picture(top=14, bottom=14), titled, picture(top=14, bottom=14, seed=2)) == (0, 0, 200, 120)


def test_dark_pictures_lose_nothing():
    """A spot in the middle of a dark picture has no straight edge; a dark picture has no edge at all."""
    rows, columns = np.mgrid[:120, :200]
    spot = (200 * np.exp(-(((rows - 60) / 22) ** 2) - ((columns - 100) / 40) ** 2)).astype(np.uint8)
    assert kept(spot) == kept(picture(light=-50)) == (0, 0, 200, 120)
    fading = (np.minimum(rows, 119 - rows) / 60 * 120).astype(np.uint8)
    assert kept(fading) == (0, 0, 200, 120)


def test_an_undecided_shot_takes_the_bars_of_the_film_unless_it_is_lit_beyond():
    bars = {"top": 14, "bottom": 14}
    dark = picture(**bars, light=-50)
    beyond = dark.copy()
    beyond[4:40, 90:130] = 120
    shots = [[lit_lines(each)] for each in (picture(**bars), dark, beyond, picture())]
    assert boxes_of_shots(shots, [5.0, 5.0, 5.0, 9.0]) == [(0, 14, 200, 106)] * 2 + [(0, 0, 200, 120)] * 2
    assert boxes_of_shots([[], shots[0]], [1.0, 1.0])[0] is None


def test_lines_of_one_axis():
    assert kept_lines(np.zeros((2, 50), np.uint8)) is None
    assert kept_lines(np.full((2, 50), 255, np.uint8)) == (0, 50)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_turned_as_pictures_are(orientation):
    stored = np.arange(30 * 50).reshape(30, 50)
    left, top, right, bottom = upright_box((4, 6, 40, 22), (30, 50), orientation, 1.0)
    upright = turn_upright(stored, orientation)
    assert np.array_equal(turn_upright(stored[6:22, 4:40], orientation), upright[top:bottom, left:right])
    crop = (left, top, right - left, bottom - top)
    assert stored_box(crop, (30, 50), orientation, 1.0) == (4, 6, 40, 22)


def test_pixels_that_are_not_square():
    assert upright_box((16, 0, 48, 40), (40, 64), 1, 2.0) == (32, 0, 96, 40)
    assert upright_box((16, 0, 48, 40), (40, 64), 6, 2.0) == (0, 32, 40, 96)


def test_shapes():
    assert shaped((0, 0, 1280, 720), 16 / 9) == (0, 0, 1280, 720)
    assert shaped((0, 0, 854, 480), 16 / 9) == (0, 0, 854, 480)  # nearly
    assert shaped((0, 0, 640, 480), 16 / 9) == (0, 60, 640, 420)
    assert shaped((0, 138, 1920, 942), 16 / 9) == (244, 138, 1674, 942)
    assert shaped((0, 0, 600, 800), 9 / 16) == (74, 0, 524, 800)
    assert union([(4, 6, 40, 22), (0, 8, 38, 30)]) == (0, 6, 40, 30)
    assert as_crop((0, 0, 64, 36), (36, 64)) is None and as_crop((0, 2, 64, 34), (36, 64)) == (0, 2, 64, 32)
