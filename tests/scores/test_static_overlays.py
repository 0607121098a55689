"""What is laid over a drawn film is found where the film moves around it; a film's own edges are not taken for it."""

from functools import cache

import numpy as np
import pytest
from lossless_clip import write_lossless
from PIL import Image, ImageDraw
from scores.drawn_films import scene

from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.picture_scores import overlays
from mova_engine.scores.static_overlays import LEAST_PICTURES, static_overlays

SIZE = (180, 320)
LEFT, TOP, SIDE = 240, 20, 40


@cache
def film(seed=0, speed=0.5):
    """A texture that glides by half its height a second."""
    return scene(seed, seconds=4.0, speed=speed, size=SIZE)[::6]


def marked(pictures, kind="ring", opacity=0.8):
    """The pictures with a light logo laid over them."""
    drawn = Image.new("L", SIZE[::-1], 0)
    draw = ImageDraw.Draw(drawn)
    place = [LEFT, TOP, LEFT + SIDE, TOP + SIDE]
    if kind == "ring":
        draw.ellipse(place, outline=255, width=6)
    elif kind == "box":
        draw.rectangle(place, fill=255)
    else:
        draw.text((LEFT, TOP), "TV", fill=255, font_size=SIDE)
    mask = np.asarray(drawn, np.float32)[..., None] / 255 * opacity
    return np.round(pictures * (1 - mask) + 255 * mask).astype(np.uint8)


@pytest.mark.parametrize("kind", ["ring", "box", "letters"])
@pytest.mark.parametrize("opacity", [0.9, 0.5])
def test_a_logo_is_found_where_it_is(kind, opacity):
    found = static_overlays(marked(film(), kind, opacity))
    assert found.boxes
    boxes = np.array(found.boxes)
    (left, top), (right, bottom) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    assert left * SIZE[1] >= LEFT - 6 and right * SIZE[1] <= LEFT + 1.6 * SIDE
    assert top * SIZE[0] >= TOP - 6 and bottom * SIZE[0] <= TOP + 1.6 * SIDE
    assert 0.3 * SIDE**2 < found.area * SIZE[0] * SIZE[1] < 2.5 * SIDE**2


@pytest.mark.parametrize("seed", range(4))
def test_a_film_has_none_of_its_own(seed):
    assert static_overlays(film(seed)).boxes == ()
    # What moves in front of a still wall with a picture on it: the wall is not laid over it.
    pictures = np.broadcast_to(marked(np.full((1, *SIZE, 3), 90, np.uint8)), (16, *SIZE, 3)).copy()
    pictures[:, 90:] = film(seed)[:, 90:]
    assert static_overlays(pictures).boxes == ()


def test_what_moves_with_the_film_is_none():
    moving = np.stack([np.roll(picture, 5 * i, axis=1) for i, picture in enumerate(marked(film()))])
    assert static_overlays(moving).boxes == ()


def test_where_too_little_moves_there_is_no_number():
    with pytest.raises(MovaError, match="too little of the picture changes"):
        static_overlays(np.repeat(marked(film()[:1]), 16, 0))
    with pytest.raises(MovaError, match="8 pictures at least, got 7"):
        static_overlays(film()[: LEAST_PICTURES - 1])


def test_the_score_of_a_file(tmp_path):
    pictures = marked(scene(1, seconds=2.0, speed=0.5, size=SIZE))
    write_lossless(tmp_path / "logo.mkv", pictures, np.zeros(16000, np.float32), rate=16000, fps=24)
    found = overlays(DecodedClip.read(tmp_path / "logo.mkv"))
    assert 0.01 < found.values["overlay_area"] < 0.08 and len(found.evidence[0]) == 4
