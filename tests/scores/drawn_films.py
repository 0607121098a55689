"""Films drawn from noise, with cuts, dissolves, fades, flashes and pans at known pictures."""

import numpy as np
from scipy.ndimage import gaussian_filter

SIZE = (72, 128)


def scene(seed, seconds=2.0, fps=24.0, speed=0.05, size=SIZE):
    """A scene uint8 [f, h, w, 3]: a coloured texture that glides by `speed` heights a second."""
    drawn = np.random.default_rng(seed)
    height, width = size
    count = round(seconds * fps)
    way = int(np.ceil(speed / fps * height * count)) + 2
    canvas = np.zeros((height, width + way, 3))
    for scale in (2, 6, 20):
        noise = drawn.standard_normal(canvas.shape)
        canvas += scale * gaussian_filter(noise, (scale, scale, 0)) * drawn.uniform(0.6, 1.4, 3)
    canvas = canvas / canvas.std() * drawn.uniform(25, 55) + drawn.uniform(60, 180, 3)
    canvas = np.clip(canvas, 0, 255)
    shifts = speed / fps * height * np.arange(count)
    found = np.empty((count, height, width, 3), np.uint8)
    for i, shift in enumerate(shifts):
        start, share = int(shift), shift % 1
        found[i] = (1 - share) * canvas[:, start : start + width] + share * canvas[:, start + 1 : start + 1 + width]
    return found


def joined(*scenes):
    """Scenes one after the other, and the pictures that begin all but the first."""
    return np.concatenate(scenes), np.cumsum([len(each) for each in scenes])[:-1].tolist()


def dissolved(first, second, frames):
    """Two scenes that mix over `frames` pictures, and the interval [from, to) of the mixture."""
    share = ((np.arange(frames) + 1) / (frames + 1))[:, None, None, None]
    mixed = first[-frames:] * (1 - share) + second[:frames] * share
    film = np.concatenate([first[:-frames], mixed.round().astype(np.uint8), second[frames:]])
    return film, (len(first) - frames, len(first))


def faded(first, second, frames):
    """Two scenes, of which the first goes into black and the second comes out of it, each over `frames` pictures."""
    share = (np.arange(frames) / frames)[:, None, None, None]
    out, into = first[-frames:] * (1 - share), second[:frames] * share
    film = np.concatenate([first[:-frames], out.astype(np.uint8), into.astype(np.uint8), second[frames:]])
    return film, (len(first) - frames, len(first) + frames)


def flashed(film, at, frames=2, level=255):
    """The film with `frames` pictures, from picture `at` on, nearly all at one level."""
    found = film.copy()
    found[at : at + frames] = found[at : at + frames] // 8 + np.uint8(level * 7 // 8)
    return found
