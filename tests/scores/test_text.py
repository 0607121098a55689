"""Text in pictures: places and areas by hand, and the real networks on words drawn at known places."""

import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scores.drawn_films import scene

from mova_engine.scores.text_places import text_numbers, text_places
from mova_engine.scores.text_reader import TextBox, TextReader

absent = [name for name in ("onnxruntime", "cv2", "rapidocr") if importlib.util.find_spec(name) is None]
needs_networks = pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed; `make setup-dev`")


def line(left, top, right, bottom, text="words"):
    return TextBox(left, top, right, bottom, text, 0.9)


def numbers(boxes, moving=True):
    film = np.zeros((len(boxes), 90, 160, 3), np.uint8)
    if moving:
        film[::2] = 40
    return text_numbers(boxes, film)


def test_areas_are_counted_once():
    found = numbers([[line(0, 0, 0.5, 0.1), line(0.25, 0, 0.75, 0.1)], []])
    assert found.area == pytest.approx(0.75 * 0.1 / 2, rel=0.02) and found.share == 0.5


def test_a_logo_stays_at_its_place_and_text_of_the_scene_does_not():
    logo = [[line(0.8, 0.05, 0.95, 0.1)] for _ in range(6)]
    assert (numbers(logo).persistence, numbers(logo).overlay) == (1, 1)
    assert numbers(logo, moving=False).overlay == 0  # text of a scene that stands still looks the same
    wandering = [[line(0.1 * i, 0.5, 0.1 * i + 0.09, 0.6)] for i in range(6)]
    assert (numbers(wandering).persistence, numbers(wandering).overlay) == (pytest.approx(1 / 6), 0)


def test_subtitles_of_other_words_are_at_one_place():
    subtitles = [[line(0.3 + 0.04 * i, 0.85, 0.6 + 0.02 * i, 0.9, str(i))] for i in range(4)] + [[], []]
    found = numbers(subtitles)
    assert (found.share, found.persistence, found.overlay) == (pytest.approx(4 / 6),) * 3


def test_places_end_where_their_text_does():
    here, there = line(0.1, 0.1, 0.3, 0.2), line(0.6, 0.1, 0.8, 0.2)
    assert sorted(map(tuple, text_places([[here], [there, here], [], [here]]))) == [(0, 1), (1,), (3,)]
    two = [[line(0.1, 0.80, 0.9, 0.86), line(0.1, 0.88, 0.9, 0.94)]] * 3
    assert [len(place) for place in text_places(two)] == [3, 3]
    assert numbers([[], []]).persistence == 0


def with_words(picture, words, at, size):
    """The picture [h, w, 3] with white words, and the box of their ink in shares of it."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size)
    draw.text(at, words, fill="white", font=font, stroke_width=2, stroke_fill="black")
    left, top, right, bottom = draw.textbbox(at, words, font=font)
    height, width = picture.shape[:2]
    return np.asarray(image), (left / width, top / height, right / width, bottom / height)


@needs_networks
@pytest.mark.networks
def test_the_real_networks_find_words_where_they_were_drawn():
    film = scene(3, seconds=4, fps=1, speed=0.3, size=(360, 640))
    reader = TextReader()
    assert reader.boxes(film[0]) == []
    boxes = []
    for picture in film:
        drawn, ink = with_words(picture, "THANKS FOR WATCHING", (150, 300), 32)
        (box,) = found = reader.boxes(drawn)
        boxes.append(found)
        assert box.text.replace(" ", "") == "THANKSFORWATCHING"
        # The box holds the ink, with less than half a line's height around it.
        left, top, right, bottom = ink
        margin = 0.5 * (bottom - top)
        assert left - margin < box.left <= left + 0.01 and right - 0.01 <= box.right < right + margin
        assert top - margin < box.top <= top + 0.01 and bottom - 0.01 <= box.bottom < bottom + margin
    found = text_numbers(boxes, film[:, ::2, ::2])
    assert (found.share, found.persistence, found.overlay) == (1, 1, 1)
    assert found.area == pytest.approx((box.right - box.left) * (box.bottom - box.top), rel=0.1)
