"""Which bucket a clip goes to: the one that keeps most of its picture and of its time.

A clip is cropped to its bucket's shape and cut to its length, never padded. What a bucket keeps is the product of

    picture   the share of the clip's picture that the centred crop of the bucket's shape keeps,
    time      the share of the seconds from the clip's start on that the bucket's length takes,
    detail    of the bucket's pixels the share that the crop has; less than 1 where it would be enlarged.

Buckets within 3 % of the best count alike; of those the one of most pixels and frames is taken, then the one that keeps
more, then the first. A clip that is shorter than every bucket cannot be used.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mova_engine.config.model import ClipConfig

# By what share of the best a bucket may keep less than that and count alike.
ALIKE = 0.03
# Seconds by which a file's declared length may be rounded.
ROUNDING = 1e-3
# What stands for a clip that is too short for every bucket.
NONE = -1


class Kept(NamedTuple):
    """What a bucket keeps of clips, float64 [n] each, or means of these. See this module."""

    picture: np.ndarray
    time: np.ndarray
    detail: np.ndarray


def kept(sizes: np.ndarray, bucket: ClipConfig) -> Kept:
    """What `bucket` keeps of clips of the `sizes`, float64 [n, 3] as of `metadata.ShownSize`. time: 0 where a clip is
    too short.
    """
    width, height, seconds = sizes.T
    shape, wanted = width / height, bucket.width / bucket.height
    picture = np.minimum(shape / wanted, wanted / shape)
    detail = np.minimum(1.0, picture * width * height / (bucket.width * bucket.height))
    # The last picture must still be on display.
    fits = seconds - (bucket.frames - 1) / bucket.fps > ROUNDING
    return Kept(picture, np.where(fits, np.minimum(1.0, bucket.duration / seconds), 0.0), detail)


def chosen(sizes: np.ndarray, buckets: Sequence[ClipConfig]) -> np.ndarray:
    """The number of the bucket that each clip goes to, int64 [n]; NONE where it is too short for all."""
    shares = np.stack([np.prod(kept(sizes, bucket), axis=0) for bucket in buckets])
    most = shares.max(axis=0)
    best = shares >= (1 - ALIKE) * most
    volume = np.array([bucket.width * bucket.height * bucket.frames for bucket in buckets])[:, None]
    best &= volume == np.where(best, volume, 0).max(axis=0)
    return np.where(most > 0, np.where(best, shares, -1.0).argmax(axis=0), NONE)
