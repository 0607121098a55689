"""The ImageBind score of a clip, and of one clip's sound with another's pictures."""

from collections.abc import Mapping
from fractions import Fraction

import torch

from mova_engine.errors import MovaError
from mova_engine.scores import imagebind_score
from mova_engine.scores.decoded_clip import DecodedClip, Floats, Measured
from mova_engine.scores.network_scores.clip_views import ChosenPictures, common_seconds, device_of, frames_at
from mova_engine.scores.networks.imagebind import ImageBind


def clip_imagebind(clip: DecodedClip, network: ImageBind, convention: imagebind_score.Convention) -> Measured:
    """The cosine of a clip's two mean embeddings, which are the evidence.

    Below 2 s published scripts find no picture; `corrected` takes one. MovaError where there is none, or no sound.
    """
    count = imagebind_score.frame_count(common_seconds(clip, convention))
    if not count and convention != "corrected":
        raise MovaError(f"the ImageBind score of the {convention} convention takes a picture every 2 s: it is shorter")
    pictures = ChosenPictures(clip, frames_at(clip, Fraction(1, 2), max(count, 1)))
    crops = torch.cat(
        [
            imagebind_score.prepare_pictures(torch.from_numpy(picture).permute(2, 0, 1).contiguous()[None])
            for picture in pictures
        ],
        1,
    )
    sound = imagebind_score.prepare_sound(torch.from_numpy(clip.channels()), clip.soundtrack.rate, convention)
    device = device_of(network)
    video = imagebind_score.video_embedding(network, crops[None].to(device))[0]
    audio = imagebind_score.audio_embedding(network, sound.mel[None].to(device))[0]
    evidence = {"video": video.cpu().numpy(), "audio": audio.cpu().numpy()}
    return Measured(imagebind_of_pair(evidence, evidence), evidence)


def imagebind_of_pair(sound: Mapping[str, Floats], pictures: Mapping[str, Floats]) -> dict[str, float]:
    """The score of one clip's sound with another's pictures."""
    video, audio = torch.tensor(pictures["video"])[None], torch.tensor(sound["audio"])[None]
    return {"imagebind": float(imagebind_score.score_imagebind(video, audio)[0])}
