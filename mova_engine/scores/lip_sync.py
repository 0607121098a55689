"""LSE-D, LSE-C and the offset between lips and voice: distances of SyncNet's features at shifts of the sound.

Window i is pictures i..i+4 at 25 per second and the 20 cepstral columns 4i..4i+19 (0.2 s at 16 kHz). m[s] is the mean
over windows of || lip_i - sound_(i+s) + 1e-6 ||. LSE-D = min m (down), LSE-C = median m - min m (up), both without a
unit; offset = -argmin m in pictures: sound that is k pictures late gives -k. Chung and Zisserman 2016; Prajwal et al.
2020 named the two numbers.

Convention "mova" is what MOVA's evaluation and syncnet_python compute: one window fewer than fits, and sound features
of zero beyond both ends, so that a short clip scores better than a long one at equal (dis)agreement. "corrected" takes
every window that fits, and each mean over the windows that have a partner at that shift.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores import face_boxes
from mova_engine.scores.face_tracks import FaceTrack, TrackConfig, find_tracks, mouth_pictures
from mova_engine.scores.features.mfcc import frame_count, mfcc
from mova_engine.scores.features.picture_size import resize_bilinear_u8
from mova_engine.scores.networks.s3fd import S3FD
from mova_engine.scores.networks.syncnet import COLUMNS, SIDE, WINDOW, SyncNet

Convention = Literal["mova", "corrected"]
FPS = 25
SAMPLE_RATE = 16000
MAX_SHIFT = 15
COLUMNS_PER_PICTURE = 4
_SAMPLES_PER_PICTURE = SAMPLE_RATE // FPS
_EPSILON = 1e-6


@dataclass(frozen=True)
class LipSync:
    """One face track's scores. confidence is LSE-C, distance LSE-D, offset in pictures of 1/25 s; windows averaged."""

    offset: int
    confidence: float
    distance: float
    windows: int


@dataclass(frozen=True)
class LipFeatures:
    """Features of a track's windows: lip [n, d] and sound [n, d], row i of both from the same 0.2 s."""

    lip: Tensor
    sound: Tensor


@dataclass(frozen=True)
class TrackLips:
    """A face track, its scores and what they were computed from."""

    track: FaceTrack
    scores: LipSync
    features: LipFeatures


@dataclass(frozen=True)
class ClipLips:
    """faces: how many each picture has. tracks: those that are long and large enough for a score."""

    faces: tuple[int, ...]
    tracks: tuple[TrackLips, ...]


def window_count(pictures: int, samples: int, convention: Convention = "mova") -> int:
    """Windows of a clip of so many pictures at 25 per second and samples at 16 kHz; never negative."""
    if convention == "mova":
        return max(0, min(pictures, samples // _SAMPLES_PER_PICTURE) - WINDOW)
    return max(0, min(pictures - WINDOW, (frame_count(samples) - COLUMNS) // COLUMNS_PER_PICTURE) + 1)


@torch.no_grad()
def lip_features(
    network: SyncNet, faces: np.ndarray, samples: np.ndarray, batch_size: int = 20, convention: Convention = "mova"
) -> LipFeatures:
    """Features of face pictures uint8 [t, h, w, 3] (red first) and 16-bit samples int16 [n] at 16 kHz.

    Pictures of another size than 224 x 224 are resized as OpenCV does; the network sees blue first, 0..255. MovaError
    for a clip that is too short for one window.
    """
    windows = window_count(len(faces), len(samples), convention)
    if windows < 1:
        raise MovaError(f"{len(faces)} pictures and {len(samples)} samples are too short for lip sync (0.24 s)")
    if samples.dtype != np.int16:
        raise MovaError(f"expected 16-bit samples, got {samples.dtype}")
    device = next(network.parameters()).device
    columns = torch.from_numpy(mfcc(samples)).to(torch.float32)
    # A view [windows, 1, 13, 20] of the columns.
    sound = columns.unfold(0, COLUMNS, COLUMNS_PER_PICTURE)[:windows].unsqueeze(1)
    lips, sounds = [], []
    for first in range(0, windows, batch_size):
        last = min(first + batch_size, windows)
        lips.append(network.lip(network_pictures(faces[first : last + WINDOW - 1]).to(device)))
        sounds.append(network.sound(sound[first:last].to(device)))
    return LipFeatures(torch.cat(lips), torch.cat(sounds))


def network_pictures(faces: np.ndarray) -> Tensor:
    """Faces uint8 [t, h, w, 3] (red first) as the network sees them: float32 [1, 3, t, 224, 224], blue first."""
    if faces.shape[1:3] != (SIDE, SIDE):
        faces = np.stack([resize_bilinear_u8(face, SIDE, SIDE) for face in faces])
    return torch.from_numpy(np.ascontiguousarray(faces[..., ::-1])).permute(3, 0, 1, 2)[None].to(torch.float32)


def shift_distances(features: LipFeatures, max_shift: int = MAX_SHIFT, convention: Convention = "mova") -> Tensor:
    """Distances [n, 2 max_shift + 1]: row i, column j compares lip i with sound i + j - max_shift.

    Where there is no such sound, "mova" compares with zeros and "corrected" gives nan.
    """
    lip, sound = features.lip, features.sound
    if lip.shape != sound.shape:
        raise MovaError(f"lip features {list(lip.shape)} and sound features {list(sound.shape)} do not pair")
    outside = 0.0 if convention == "mova" else math.nan
    padded = torch.nn.functional.pad(sound, (0, 0, max_shift, max_shift), value=outside)
    shifted = padded.unfold(0, len(sound), 1)  # [shifts, d, n]
    return torch.stack([torch.linalg.vector_norm(lip - s.T + _EPSILON, dim=1) for s in shifted], 1)


def mean_distances(distances: Tensor) -> Tensor:
    """Mean over windows by shift [shifts]; windows without a partner (nan) are left out, nan where none has one."""
    return distances.nanmean(0)


def score_lip_sync(features: LipFeatures, max_shift: int = MAX_SHIFT, convention: Convention = "mova") -> LipSync:
    """Offset, LSE-C and LSE-D of one face track (the module's formulas)."""
    mean = mean_distances(shift_distances(features, max_shift, convention))
    shifts = torch.arange(-max_shift, max_shift + 1, device=mean.device)[~mean.isnan()]
    mean = mean[~mean.isnan()]
    least, at = mean.min(0)
    return LipSync(-int(shifts[at]), float(mean.median() - least), float(least), len(features.lip))


def best_track(tracks: Sequence[LipSync]) -> LipSync | None:
    """The track that stands for a clip in MOVA's evaluation: the largest LSE-C - LSE-D; None without a track."""
    return max(tracks, key=lambda track: track.confidence - track.distance, default=None)


def mean_over_windows(tracks: Sequence[LipSync]) -> tuple[float, float]:
    """LSE-C and LSE-D of all tracks of a clip, each weighted by its windows: what the `corrected` convention tells."""
    windows = sum(track.windows for track in tracks)
    confidence = fsum(track.confidence * track.windows for track in tracks) / windows
    distance = fsum(track.distance * track.windows for track in tracks) / windows
    return confidence, distance


def mean_over_tracks(tracks: Sequence[LipSync]) -> tuple[float, float] | None:
    """Means of LSE-C and LSE-D over tracks, what MOVA's evaluation of a folder of face crops writes; None for none."""
    if not tracks:
        return None
    return fmean(track.confidence for track in tracks), fmean(track.distance for track in tracks)


def score_clip(
    detector: S3FD,
    network: SyncNet,
    pictures: Sequence[np.ndarray] | np.ndarray,
    samples: np.ndarray,
    shots: Sequence[tuple[int, int]] | None = None,
    convention: Convention = "mova",
) -> ClipLips:
    """Every face track of a clip with its scores.

    pictures: uint8 [t, h, w, 3], red first, 25 per second; read one after the other for faces, then again for tracks.
    samples: int16 [n] at 16 kHz. shots: (first picture, last picture + 1) of each, the whole clip without.

    Tracks that are too short for a window are left out; a clip without a track has no score. `best_track` picks the one
    that stands for a clip.
    """
    config = TrackConfig()
    scale = face_boxes.SCALE if convention == "mova" else None
    faces = [face_boxes.detect_faces(detector, picture, i, scale) for i, picture in enumerate(pictures)]
    scored = []
    for start, end in shots or [(0, len(pictures))]:
        if end - start < config.least_boxes:
            continue
        for track in find_tracks(faces[start:end], config, convention, pictures[0].shape[0]):
            first, last = int(track.frames[0]), int(track.frames[-1]) + 1
            voice = samples[first * _SAMPLES_PER_PICTURE : last * _SAMPLES_PER_PICTURE]
            if window_count(len(track.frames), len(voice), convention) > 0:
                mouths = mouth_pictures(pictures, track, convention=convention)
                features = lip_features(network, mouths, voice, convention=convention)
                scored.append(TrackLips(track, score_lip_sync(features, convention=convention), features))
    return ClipLips(tuple(map(len, faces)), tuple(scored))
