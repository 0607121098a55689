"""LSE-D, LSE-C and the offset of a clip's faces, and of one clip's sound with another's lips."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mova_engine.scores import lip_sync
from mova_engine.scores.decoded_clip import DecodedClip, Measured, placed
from mova_engine.scores.features.converted_sound import convert_sound
from mova_engine.scores.features.frame_choice import constant_rate
from mova_engine.scores.features.mp3_hop import mp3_rate, through_mp3
from mova_engine.scores.lip_sync import Convention, LipFeatures
from mova_engine.scores.network_scores.clip_views import ChosenPictures, frame_seconds
from mova_engine.scores.networks.s3fd import S3FD
from mova_engine.scores.networks.syncnet import SyncNet
from mova_engine.scores.shots import published_shots, shots


def clip_lip_sync(clip: DecodedClip, opened: Mapping[str, Any], convention: Convention) -> Measured:
    """LSE-D, LSE-C and offset, with the faces they rest on: share of pictures that have one, tracks, their seconds.

    `mova` tells of the track with the largest LSE-C - LSE-D; `corrected` means all tracks by their length, and the
    offset of that one. Evidence: that track's features. A clip without a track has no LSE, and a reason.

    opened: S3FD as "s3fd", SyncNet as "syncnet". A track ends with its shot: `mova` finds cuts as its script does, by
    PySceneDetect's ContentDetector. MovaError without OpenCV.
    """
    detector: S3FD = opened["s3fd"]
    syncnet: SyncNet = opened["syncnet"]
    indices = constant_rate(clip.times, Fraction(lip_sync.FPS), frame_seconds(clip))
    pictures = ChosenPictures(clip, indices)
    cuts = published_shots(pictures) if convention == "mova" else shots(clip.small_pictures[indices], lip_sync.FPS)
    found = lip_sync.score_clip(detector, syncnet, pictures, _voice(clip, convention), cuts, convention)
    tracks = [track.scores for track in found.tracks]
    best = lip_sync.best_track(tracks)
    values: dict[str, float] = {
        "face_coverage": sum(count > 0 for count in found.faces) / len(found.faces),
        "face_tracks": len(tracks),
        "face_seconds": sum(len(each.track.frames) for each in found.tracks) / lip_sync.FPS,
    }
    if best is None:
        seen = sum(count > 0 for count in found.faces)
        told = f"{seen} of {len(found.faces)} pictures have a face, none of which stays long enough and is large enough"
        return Measured(values, None, told if seen else "no picture has a face")
    means = (best.confidence, best.distance) if convention == "mova" else lip_sync.mean_over_windows(tracks)
    values |= {"lse_c": means[0], "lse_d": means[1], "lse_offset": best.offset}
    features = found.tracks[tracks.index(best)].features
    evidence = {"lip": features.lip.cpu().numpy(), "sound": features.sound.cpu().numpy(), "convention": convention}
    return Measured(values, evidence)


def _voice(clip: DecodedClip, convention: Convention) -> NDArray[np.int16]:
    """Sound int16 [n] at 16 kHz from the first picture on; `mova` hears it through MP3, 23 ms late."""
    rate = lip_sync.SAMPLE_RATE
    if convention != "mova":
        return np.array(clip.sound_with_pictures(rate, "s16"), np.int16)
    track = clip.soundtrack
    at = mp3_rate(track.rate)
    channels = "mono" if track.samples.shape[1] == 1 else "stereo"
    heard = through_mp3(np.asarray(clip.sound(at, channels), np.float32), at)
    return placed(np.asarray(convert_sound(heard, at, rate), np.int16), round(track.start * rate))


def lip_sync_of_pair(sound: Mapping[str, Any], pictures: Mapping[str, Any]) -> dict[str, float]:
    """LSE-D and LSE-C of one clip's voice with another's lips, over the windows that both have."""
    lip, voice = torch.tensor(pictures["lip"]), torch.tensor(sound["sound"])
    count = min(len(lip), len(voice))
    scored = lip_sync.score_lip_sync(LipFeatures(lip[:count], voice[:count]), convention=pictures["convention"])
    return {"lse_d": scored.distance, "lse_c": scored.confidence}
