"""DOVER's quality of a video: technical (noise, blur, compression) and aesthetic (composition, content); up.

technical: three clips of 32 pictures, two apart, of which 7 x 7 fragments of 32 pixels are spliced, unresized.
aesthetic: 32 pictures over the whole video, each resized to 224 x 224. A branch's raw score is the mean of its score
map; standardised by mean and deviation over LSVQ and fused: overall = sigmoid(0.6104 t + 0.3896 a), 0..1.
Source: VQAssessment/DOVER.

The published samplers are random and unseeded, so scores differ from run to run; here a seed is always given. Of
pictures under 224 the published code (convention "mova") enlarges the picture, but places the fragments as if it had
not: only the upper left part is seen. "corrected" places them over the enlarged picture.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores.features.picture_size import resize
from mova_engine.scores.networks.dover import Dover

Convention = Literal["mova", "corrected"]
PICTURE_MEAN = (123.675, 116.28, 103.53)
PICTURE_STD = (58.395, 57.12, 57.375)
SIDE = 224
TECHNICAL_MEAN, TECHNICAL_STD, TECHNICAL_WEIGHT = 0.1107, 0.07355, 0.6104
AESTHETIC_MEAN, AESTHETIC_STD, AESTHETIC_WEIGHT = -0.08285, 0.03774, 0.3896


@dataclass(frozen=True)
class FragmentConfig:
    """Fragments of a picture: rows x columns of them, each of `size` pixels, at one place over `aligned` pictures."""

    rows: int = 7
    columns: int = 7
    size: int = 32
    aligned: int = 32


@dataclass(frozen=True)
class FrameConfig:
    """Pictures of a video: `clips` times one picture or run of `length` pictures in each of `parts` equal parts."""

    length: int
    parts: int
    interval: int = 2
    clips: int = 1


TECHNICAL_FRAMES = FrameConfig(length=32, parts=3)
AESTHETIC_FRAMES = FrameConfig(length=1, parts=32)


@dataclass(frozen=True)
class DoverScore:
    """Raw means of the score maps, and the three published scores from 0 to 1."""

    technical_raw: float
    aesthetic_raw: float

    @property
    def _standardised(self) -> tuple[float, float]:
        technical = (self.technical_raw - TECHNICAL_MEAN) / TECHNICAL_STD
        return technical, (self.aesthetic_raw - AESTHETIC_MEAN) / AESTHETIC_STD

    @property
    def technical(self) -> float:
        return _sigmoid(self._standardised[0])

    @property
    def aesthetic(self) -> float:
        return _sigmoid(self._standardised[1])

    @property
    def overall(self) -> float:
        technical, aesthetic = self._standardised
        return _sigmoid(TECHNICAL_WEIGHT * technical + AESTHETIC_WEIGHT * aesthetic)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def sample_frames(count: int, config: FrameConfig, rng: np.random.RandomState) -> list[int]:
    """Numbers of the sampled pictures of a video of `count`; a run that passes the end goes on at the beginning.

    Each part gives a run of `length` pictures `interval` apart that begins at random where the part leaves room.
    """
    if count < 1:
        raise MovaError("a video without pictures has no quality")
    part, spanned = count // config.parts, config.length * config.interval
    found: list[int] = []
    for _ in range(config.clips):
        starts = np.arange(config.parts) * part
        if part > spanned:
            starts = starts + rng.randint(0, part - spanned, size=config.parts)
        run = np.arange(config.length) * config.interval
        found += ((starts[:, None] + run) % count).ravel().tolist()
    return found


@dataclass(frozen=True)
class FragmentPlaces:
    """Where fragments are taken: int64 [rows, columns, groups of pictures] of first rows and first columns.

    drawn: the random parts of them, for rows and for columns, each with the number below which they were drawn.
    """

    top: Tensor
    left: Tensor
    drawn: tuple[tuple[int, Tensor], ...]


def place_fragments(
    height: int, width: int, pictures: int, config: FragmentConfig, generator: torch.Generator
) -> FragmentPlaces:
    """Fragments of a picture of height x width: a grid, and within each of its cells a random offset where it fits.

    MovaError where a fragment is larger than the picture or the pictures are no whole number of groups.
    """
    if min(height, width) < config.size:
        raise MovaError(f"a picture of {height} x {width} is smaller than a fragment of {config.size} pixels")
    if pictures % config.aligned:
        raise MovaError(f"{pictures} pictures are no multiple of {config.aligned}")
    shape = (config.rows, config.columns, pictures // config.aligned)
    drawn = []
    starts = []
    # Rows are drawn before columns, each all at once: the order in which the published code asks its generator.
    for full, parts, along in ((height, config.rows, (-1, 1, 1)), (width, config.columns, (1, -1, 1))):
        cell = full // parts
        grid = torch.tensor([min(cell * i, full - config.size) for i in range(parts)]).reshape(along).expand(shape)
        if cell > config.size:
            below = cell - config.size
            offsets = torch.randint(below, shape, generator=generator)
            drawn.append((below, offsets))
            grid = grid + offsets
        starts.append(grid)
    return FragmentPlaces(starts[0], starts[1], tuple(drawn))


def splice_fragments(
    pictures: Tensor,
    generator: torch.Generator,
    config: FragmentConfig | None = None,
    convention: Convention = "mova",
) -> tuple[Tensor, FragmentPlaces]:
    """Pictures uint8 [3, t, h, w] -> fragments side by side uint8 [3, t, rows size, columns size], and their places.

    Pictures that are smaller than the result are enlarged (bilinear, truncated to 8 bits).
    """
    config = config or FragmentConfig()
    rows, columns = config.rows * config.size, config.columns * config.size
    count, height, width = pictures.shape[1:]
    if count == 1:
        config = FragmentConfig(config.rows, config.columns, config.size, 1)
    ratio = min(height / rows, width / columns)
    if ratio < 1:
        larger = F.interpolate(pictures / 255.0, scale_factor=1 / ratio, mode="bilinear")
        pictures = (larger * 255.0).to(torch.uint8)
        if convention == "corrected":
            height, width = pictures.shape[-2:]
    places = place_fragments(height, width, count, config, generator)
    made = torch.zeros(3, count, rows, columns, dtype=torch.uint8, device=pictures.device)
    size = config.size
    for i in range(config.rows):
        for j in range(config.columns):
            for group in range(count // config.aligned):
                t = slice(group * config.aligned, (group + 1) * config.aligned)
                top, left = int(places.top[i, j, group]), int(places.left[i, j, group])
                made[:, t, i * size : (i + 1) * size, j * size : (j + 1) * size] = pictures[
                    :, t, top : top + size, left : left + size
                ]
    return made, places


def aesthetic_view(pictures: Tensor) -> Tensor:
    """Pictures uint8 [3, t, h, w] -> uint8 [3, t, 224, 224]: bilinear with low-pass filter in float, then rounded."""
    return resize(pictures.to(torch.float32), (SIDE, SIDE), "bilinear").round().to(torch.uint8)


def normalise(pictures: Tensor) -> Tensor:
    """Pictures [3, t, h, w] or [b, 3, t, h, w] in 0..255 less ImageNet's mean and divided by its deviation, float32."""
    mean, std = (torch.tensor(v, device=pictures.device)[:, None, None, None] for v in (PICTURE_MEAN, PICTURE_STD))
    return (pictures.to(torch.float32) - mean) / std


class VideoPictures(Protocol):
    """Pictures of a video, such as a tensor uint8 [t, 3, h, w]: those of given indices, and how many there are."""

    def __len__(self) -> int: ...
    def __getitem__(self, indices: list[int], /) -> Tensor: ...


def prepare_views(pictures: VideoPictures, seed: int, convention: Convention = "mova") -> tuple[Tensor, Tensor]:
    """What both networks see of a video uint8 [t, 3, h, w]: uint8 clips [3, 3, 32, 224, 224] and [3, 32, 224, 224].

    The first are three clips of spliced fragments, the second 32 resized pictures. MovaError for pictures smaller than
    a fragment.
    """
    rng, generator = np.random.RandomState(seed), torch.Generator().manual_seed(seed)
    # The published order: pictures of both branches first, then fragments.
    technical = pictures[sample_frames(len(pictures), TECHNICAL_FRAMES, rng)].transpose(0, 1)
    aesthetic = pictures[sample_frames(len(pictures), AESTHETIC_FRAMES, rng)].transpose(0, 1)
    fragments, _ = splice_fragments(technical, generator, convention=convention)
    clips = fragments.unflatten(1, (TECHNICAL_FRAMES.parts, -1)).transpose(0, 1)
    # One by one: in float32, 32 pictures of 1080p are 800 MB.
    return clips, torch.cat([aesthetic_view(picture) for picture in aesthetic.split(1, 1)], 1)


@torch.no_grad()
def measure_dover(
    network: Dover, pictures: VideoPictures, seed: int = 0, convention: Convention = "mova"
) -> DoverScore:
    """DOVER of a video of pictures uint8 [t, 3, h, w], red first, at its own rate; the same seed gives the same score.

    MovaError for pictures smaller than a fragment.
    """
    device = next(network.parameters()).device
    clips, view = prepare_views(pictures, seed, convention)
    # One clip at a time: three together need three times the memory and no less time on a CPU.
    maps = torch.cat([network.technical(normalise(clip.to(device))[None]) for clip in clips])
    return DoverScore(float(maps.mean()), float(network.aesthetic(normalise(view.to(device))[None]).mean()))
