"""Buckets: the sizes and lengths of clips that a run trains on side by side, each batch of one of them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from mova_engine.config.limits import check, check_least
from mova_engine.config.model import ClipConfig
from mova_engine.errors import MovaError

# Pixels of a latent's patch, of which heights and widths are multiples.
MULTIPLE = 16
# The run's own size, or that turned, is taken for a shape that differs by no more than this share: MOVA's 640x352 is
# not quite 16:9.
NEAR = 0.03
_SIZE = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")
_ASPECT = re.compile(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class BucketSettings:
    """The buckets of a run: each of the sizes in each of the lengths. None: all clips are of the one size `clip`."""

    sizes: tuple[str, ...] = ()
    """Sizes of clips that are trained on side by side, WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES: 640x352 352x640x97. Each
    clip goes to the one that keeps most of it.
    """
    aspects: tuple[str, ...] = ()
    """Shapes WIDTH:HEIGHT, for each of which a size of about `pixels` is found: 16:9 9:16 1:1. In YAML in quotes."""
    pixels: int | None = None
    """Pixels of a picture of those shapes, at most; default: those of `clip`."""
    frames: tuple[int, ...] = ()
    """Lengths of clips, each 4n+1 frames; default: `clip.frames`."""

    def __post_init__(self) -> None:
        check_least(self, "buckets.", pixels=MULTIPLE**2)
        check(self.pixels is None or bool(self.aspects), "buckets.pixels is for buckets.aspects: give those too")
        for text in self.sizes:
            _size(text)
        for text in self.aspects:
            _aspect(text)
        # Whether a size is one that any model takes does not depend on the run's own.
        self.shapes(ClipConfig(frames=1, height=MULTIPLE, width=MULTIPLE))

    @property
    def given(self) -> bool:
        """Whether the run has buckets."""
        return bool(self.sizes or self.aspects or self.frames)

    def check_task(self, task: str) -> None:
        """MovaError for buckets of a task without pictures."""
        check(
            task == "joint" or not self.given,
            "buckets are sizes of pictures and their lengths, and the audio task has no pictures: leave them out",
        )

    def shapes(self, clip: ClipConfig) -> tuple[ClipConfig, ...]:
        """The buckets of a run whose clips are `clip` but for their size; that alone where none are given.

        Raises MovaError for a size, or a number of frames, that no model takes, and for one that is given twice.
        """
        lengths = self.frames or (clip.frames,)
        sizes = [_size(text) for text in self.sizes]
        pictures = dict.fromkeys(_fitted(_aspect(text), self.pixels, clip) for text in self.aspects)
        if not sizes and not pictures:
            pictures = {(clip.width, clip.height): None}
        every = [(width, height, own) for width, height, frames in sizes for own in (frames and (frames,)) or lengths]
        every += [(width, height, length) for (width, height), length in product(pictures, lengths)]
        for each in every:
            check(every.count(each) == 1, f"buckets: {each[0]}x{each[1]}x{each[2]} is given twice")
        return tuple(_shape(clip, *each) for each in every)


def _shape(clip: ClipConfig, width: int, height: int, frames: int) -> ClipConfig:
    try:
        return replace(clip, width=width, height=height, frames=frames)
    except MovaError as error:
        raise MovaError(f"buckets: {width}x{height}x{frames}: {error}") from None


def bucket_name(clip: ClipConfig) -> str:
    """A bucket as settings, tables and metrics name it: "640x352x193", width, height and frames."""
    return f"{clip.width}x{clip.height}x{clip.frames}"


def clip_tokens(clip: ClipConfig) -> int:
    """Tokens of a clip in both towers."""
    return clip.video_tokens + clip.audio_tokens


def largest(shapes: Sequence[ClipConfig]) -> ClipConfig:
    """The bucket of most tokens, which decides how much memory a run needs; of several the first."""
    return max(shapes, key=clip_tokens)


def shortest(shapes: Sequence[ClipConfig]) -> ClipConfig:
    """The bucket of fewest frames; of several the first."""
    return min(shapes, key=lambda shape: shape.frames)


def _size(text: str) -> tuple[int, int, int | None]:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise MovaError(f"buckets.sizes: '{text}' is no size: WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES, such as 640x352x193")
    width, height, frames = found.groups()
    return int(width), int(height), None if frames is None else int(frames)


def _aspect(text: str) -> float:
    found = _ASPECT.fullmatch(text)
    ratio = float(found[1]) / float(found[2]) if found is not None and float(found[2]) else 0.0
    if not 0.05 <= ratio <= 20:
        raise MovaError(
            f"buckets.aspects: '{text}' is no shape: WIDTH:HEIGHT, such as 16:9 (in YAML in quotes, '16:9')"
        )
    return ratio


def _fitted(aspect: float, pixels: int | None, clip: ClipConfig) -> tuple[int, int]:
    """The width and height, multiples of MULTIPLE, of at most `pixels`, that are nearest to a shape. Without `pixels`
    those of `clip`, or the same turned, where that is near enough.
    """
    for width, height in () if pixels is not None else ((clip.width, clip.height), (clip.height, clip.width)):
        if abs(math.log(width / height / aspect)) <= NEAR:
            return width, height
    budget = pixels or clip.width * clip.height
    sides = math.sqrt(budget * aspect), math.sqrt(budget / aspect)
    down = [max(MULTIPLE, int(side // MULTIPLE) * MULTIPLE) for side in sides]
    around = product(*((side, side + MULTIPLE) for side in down))
    usable = [(w, h) for w, h in around if w * h <= budget] or [(down[0], down[1])]
    # Nearest in shape, and of nearly the same shape the larger one.
    return min(usable, key=lambda size: (round(abs(math.log(size[0] / size[1] / aspect)) / NEAR), -size[0] * size[1]))


NO_BUCKETS = BucketSettings()
