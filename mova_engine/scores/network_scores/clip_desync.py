"""DeSync of a clip, and of one clip's sound with another's pictures."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from mova_engine.scores import desync
from mova_engine.scores.decoded_clip import DecodedClip, Floats, Measured, placed
from mova_engine.scores.network_scores.clip_views import ChosenPictures, common_seconds, device_of, frames_at
from mova_engine.scores.networks.synchformer import FRAMES, SEGMENTS, Synchformer


def clip_desync(clip: DecodedClip, network: Synchformer, convention: str) -> Measured:
    """DeSync in seconds, and the mean of the two signed offsets: positive where the sound is early.

    Published scripts (`mova`, `av-benchmark`) let sound and pictures begin together whatever the file's clock says;
    `corrected` goes by the clock. Evidence: features of the first and the last 14 segments, which are all that DeSync
    reads. MovaError below 4.8 s.
    """
    frames, samples = desync.clip_lengths(common_seconds(clip, convention))
    segments = desync.segment_counts(frames, samples)
    desync.require_segments(min(segments))
    sound = clip.channels()
    track = clip.soundtrack
    if convention == "corrected":
        sound = np.asarray(placed(sound, round(track.start * track.rate)), np.float32)
    device = device_of(network)
    heard = desync.mono_16k(torch.from_numpy(sound), track.rate, samples).to(device)
    pictures = ChosenPictures(clip, frames_at(clip, Fraction(desync.FPS), frames))
    video = [_seen(network, pictures[first:last], device) for first, last in _spans(segments[0], desync.FRAME_STEP)]
    step = desync.SAMPLE_STEP
    audio = [
        desync.audio_features(network, heard[None, first:last])
        for first, last in _spans(segments[1], step, desync.SEGMENT_SAMPLES)
    ]
    evidence = {"video": _stored(video), "audio": _stored(audio)}
    return Measured(_scored(network, torch.cat(video, 1), torch.cat(audio, 1)), evidence)


def desync_of_pair(
    sound: Mapping[str, Floats], pictures: Mapping[str, Floats], network: Synchformer, convention: str
) -> dict[str, float]:
    """The same of one clip's sound and another's pictures, by the features of their segments."""
    device = device_of(network)
    video, audio = (torch.tensor(x, device=device)[None] for x in (pictures["video"], sound["audio"]))
    return _scored(network, video, audio)


def _spans(segments: int, step: int, length: int = FRAMES) -> list[tuple[int, int]]:
    """From where to where pictures, or samples, are read: all, or those of the first and of the last 14 segments."""
    if segments <= 2 * SEGMENTS:
        return [(0, (segments - 1) * step + length)]
    within = (SEGMENTS - 1) * step + length
    last = (segments - SEGMENTS) * step
    return [(0, within), (last, last + within)]


def _seen(network: Synchformer, pictures: ChosenPictures, device: torch.device) -> Tensor:
    prepared: list[Tensor] = []
    before: np.ndarray | None = None
    for picture in pictures:
        if picture is not before:
            upright = torch.from_numpy(picture).permute(2, 0, 1).contiguous()
            prepared.append(desync.network_pictures(upright))
        else:
            prepared.append(prepared[-1])
        before = picture
    return desync.video_features(network, torch.stack(prepared)[None].to(device))


def _stored(features: list[Tensor]) -> Floats:
    return torch.cat(features, 1)[0].cpu().numpy()


def _scored(network: Synchformer, video: Tensor, audio: Tensor) -> dict[str, float]:
    scored = desync.score_desync(*desync.window_logits(network, video, audio))[0]
    return {"desync": scored.seconds, "desync_offset": sum(scored.offsets) / 2}
