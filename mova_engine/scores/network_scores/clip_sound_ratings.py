"""What is heard in a clip: Audiobox-Aesthetics' ratings, and EAT's classes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mova_engine.scores import audiobox, sound_events
from mova_engine.scores.audiobox import RatingScale
from mova_engine.scores.decoded_clip import DecodedClip, Measured
from mova_engine.scores.network_scores.clip_views import device_of
from mova_engine.scores.networks.audiobox_axes import AudioboxNetwork
from mova_engine.scores.networks.eat import Eat


def clip_audiobox(
    clip: DecodedClip, opened: tuple[AudioboxNetwork, Mapping[str, RatingScale]], convention: str
) -> Measured:
    """CE, CU, PC and PQ of the whole sound. opened: the network and the scales beside its weights."""
    network, scales = opened
    sound = audiobox.mono_at_16k(torch.from_numpy(clip.channels()), clip.soundtrack.rate)
    ratings = audiobox.rate(network, scales, [sound.to(device_of(network))])[0]
    return Measured({f"audiobox_{axis.lower()}": value for axis, value in ratings.items()}, None)


def clip_sound_events(clip: DecodedClip, network: Eat, convention: str) -> Measured:
    """How probable speech, singing, music and silence are, of the first 10.24 s."""
    sound = torch.from_numpy(clip.channels()).mean(0).to(device_of(network))
    found = sound_events.event_probabilities(network, [sound], clip.soundtrack.rate)
    return Measured({f"event_{name}": _strongest(found, classes) for name, classes in _CLASSES.items()}, None)


_CLASSES = {
    "speech": sound_events.SPEECH,
    "singing": sound_events.SINGING,
    "music": sound_events.MUSIC,
    "silence": sound_events.SILENCE,
}


def _strongest(probabilities: Tensor, classes: tuple[int, ...]) -> float:
    return float(sound_events.strongest(probabilities, classes)[0])
