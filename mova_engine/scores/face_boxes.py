"""Faces of a picture: S3FD's answers, and which of overlapping boxes stay."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores.features.picture_size import scale_bilinear_u8
from mova_engine.scores.networks.s3fd import LEAST_SIDE, MEAN, S3FD, FaceMaps

# Of SyncNet's pipeline, which MOVA's evaluation follows.
SCALE = 0.25
LEAST_SCORE = 0.9
FINAL_OVERLAP = 0.1
# Of the network's own suppression, before it.
NETWORK_LEAST_SCORE = 0.05
NETWORK_OVERLAP = 0.3
NETWORK_CANDIDATES = 5000
NETWORK_FACES = 750
_BLOCK = 128
# "corrected" detects every picture at this height: what 720 rows have at SCALE.
CORRECTED_HEIGHT = 180


@dataclass(frozen=True)
class Face:
    """A face in picture number `frame`: box left, top, right, bottom in its pixels, and the detector's score 0..1."""

    frame: int
    box: tuple[float, float, float, float]
    score: float


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes left, top, right, bottom."""
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = across * down
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def network_picture(picture: np.ndarray, scale: float = SCALE) -> Tensor:
    """A picture uint8 [h, w, 3] (red first) as the detector sees it: float32 [1, 3, h scale, w scale] less MEAN."""
    scaled = picture if scale == 1 else scale_bilinear_u8(picture, scale)
    return (torch.from_numpy(scaled.astype(np.float32)) - torch.tensor(MEAN)).permute(2, 0, 1)[None]


def network_faces(maps: FaceMaps) -> Tensor:
    """Rows [n, 5] of one picture by falling score: score, left, top, right, bottom as fractions of the picture.

    Boxes that score above 0.05 and overlap no better one by more than 0.3; at most 750. MovaError for several pictures.
    """
    if len(maps.faces) != 1:
        raise MovaError(f"faces are taken from one picture at a time, got {len(maps.faces)}")
    scores, boxes = maps.faces[0, :, 1], maps.boxes()[0]
    likely = scores > NETWORK_LEAST_SCORE
    scores, boxes = scores[likely].cpu(), boxes[likely].cpu()
    # Ascending and then reversed: of equal scores the last one leads.
    order = scores.argsort(stable=True).flip(0)[:NETWORK_CANDIDATES]
    kept = order[_suppress(boxes[order].numpy(), NETWORK_OVERLAP, NETWORK_FACES)]
    return torch.cat((scores[kept, None], boxes[kept]), 1)


def faces_of_rows(rows: Tensor, height: int, width: int, least_score: float = LEAST_SCORE) -> np.ndarray:
    """Boxes float64 [n, 5] left, top, right, bottom in pixels and score, by falling score.

    rows: float32 [m, 5] of `network_faces`; those up to the first that does not score above least_score count, without
    the ones that overlap a better one by more than 0.1.
    """
    enough = (rows[:, 0] > least_score).cumprod(0).bool()
    pixels = rows[enough, 1:] * torch.tensor([width, height, width, height])
    found = np.hstack((pixels.numpy(), rows[enough, :1].numpy())).astype(np.float64)
    found = found[found[:, 4].argsort(kind="stable")[::-1]]
    return found[_suppress(found[:, :4], FINAL_OVERLAP)]


@torch.no_grad()
def detect_faces(network: S3FD, picture: np.ndarray, frame: int = 0, scale: float | None = SCALE) -> list[Face]:
    """Faces of a picture uint8 [h, w, 3] (red first), best first. scale None brings every picture to 180 rows.

    The reference detects at a quarter of the size, so that a face of 100 pixels is 25 for the network, at 360p and at
    720p alike. MovaError for a picture that is too small for the network.
    """
    height, width = picture.shape[:2]
    device = next(network.parameters()).device
    scale = min(1.0, CORRECTED_HEIGHT / height) if scale is None else scale
    if min(height, width) * scale < LEAST_SIDE:
        raise MovaError(f"a picture of {height} x {width} at scale {scale:g} is too small for the face detector")
    rows = network_faces(network(network_picture(picture, scale).to(device)))
    return [Face(frame, (a, b, c, d), s) for a, b, c, d, s in faces_of_rows(rows, height, width).tolist()]


def _suppress(boxes: np.ndarray, most: float, limit: int | None = None) -> np.ndarray:
    """Indices of the first `limit` boxes [n, 4], best first, that overlap no kept earlier one by more than `most`."""
    left, kept = np.arange(len(boxes)), []
    while len(left) and (limit is None or len(kept) < limit):
        # Those of a block against each other one by one, then all that is left against those that stay: an untrained
        # detector gives thousands of boxes, and a step for each of them would cost as much as the network.
        block, left = left[:_BLOCK], left[_BLOCK:]
        apart = _apart(boxes[block], boxes[block], most)
        stays = np.ones(len(block), bool)
        for i in range(len(block)):
            if stays[i]:
                stays[i + 1 :] &= apart[i, i + 1 :]
        kept += block[stays].tolist()
        left = left[_apart(boxes[block[stays]], boxes[left], most).all(0)]
    return np.array(kept[:limit], dtype=np.int64)


def _apart(a: np.ndarray, b: np.ndarray, most: float) -> np.ndarray:
    """Whether boxes [n, 4] and [m, 4] overlap by `most` at most: bool [n, m]; False for two that have no area."""
    area_a, area_b = ((each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (a, b))
    across = np.maximum(np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0]), 0)
    down = np.maximum(np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1]), 0)
    shared = across * down
    with np.errstate(invalid="ignore"):
        return shared / (area_a[:, None] + area_b - shared) <= most
