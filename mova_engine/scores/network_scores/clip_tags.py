"""Features and logits of a clip by PANNs, PaSST and VGGish, of which sets of clips are judged: FD, KL, KID, IS."""

import numpy as np
import torch
from torch import Tensor

from mova_engine.scores import audio_tagging
from mova_engine.scores.audio_tagging import IS_SECONDS
from mova_engine.scores.decoded_clip import DecodedClip, Measured
from mova_engine.scores.features.converted_sound import averaged_stereo
from mova_engine.scores.network_scores.clip_views import device_of
from mova_engine.scores.networks.cnn14 import Cnn14, TaggedSound
from mova_engine.scores.networks.passt import SAMPLE_RATE as PASST_RATE
from mova_engine.scores.networks.passt import Passt, passt_spectrum
from mova_engine.scores.networks.vggish import Vggish, vggish_examples

# Seconds of sound that av-benchmark gives to PaSST, whatever a clip has.
PASST_SECONDS = 10.0


def clip_tags_16k(clip: DecodedClip, network: Cnn14, convention: str) -> Measured:
    """Of the first 8 s at 16 kHz: "embedding" [2048] and "logits" [527], the evidence; no number of the clip alone."""
    sound = torch.from_numpy(clip.channels())
    return _tagged(network, audio_tagging.features_input(sound, clip.soundtrack.rate), None)


def clip_tags_32k(clip: DecodedClip, network: Cnn14, convention: str) -> Measured:
    """The same at 32 kHz, for the inception score: `mova` hears 10 s, filled with silence, and a mono source at 0.7071
    of its level, as its scripts have ffmpeg spread it over two channels."""
    if convention == "mova":
        return _tagged(network, torch.from_numpy(averaged_stereo_of(clip)), IS_SECONDS)
    return _tagged(network, torch.tensor(clip.sound(32000)), None)


def clip_vggish(clip: DecodedClip, network: Vggish, convention: str) -> Measured:
    """VGGish's "embedding" [examples, 128] of each 0.96 s of the first 8 s; no number of the clip alone."""
    sound = audio_tagging.features_input(torch.from_numpy(clip.channels()), clip.soundtrack.rate)
    examples = vggish_examples(sound.to(device_of(network)))
    return Measured({}, {"embedding": network(examples).cpu().numpy()})


def clip_passt(clip: DecodedClip, network: Passt, convention: str) -> Measured:
    """PaSST's "embedding" [768] and "logits" [527] of the first 8 s at 32 kHz, filled with silence to 10 s."""
    sound = torch.from_numpy(clip.channels())
    heard = audio_tagging.features_input(sound, clip.soundtrack.rate, rate=PASST_RATE).to(device_of(network))
    spectrum = passt_spectrum(audio_tagging.padded_or_cut(heard, int(PASST_SECONDS * PASST_RATE)))
    return _evidence(network(spectrum[None]))


def averaged_stereo_of(clip: DecodedClip) -> "np.ndarray":
    """A clip's sound float32 [n] at 32 kHz as MOVA's scripts read it for the inception score and CLAP."""
    return averaged_stereo(np.asarray(clip.sound(32000, "stereo", "s16"), np.int16))


def _tagged(network: Cnn14, heard: Tensor, seconds: float | None) -> Measured:
    return _evidence(audio_tagging.tag_clips(network, [heard.to(device_of(network))], seconds=seconds))


def _evidence(tags: TaggedSound) -> Measured:
    return Measured({}, {"embedding": tags.embedding[0].cpu().numpy(), "logits": tags.logits[0].cpu().numpy()})
