"""What is heard in a sound, by EAT's tags of AudioSet's 527 classes: speech and singing for curation, or any class.

Convention, that of EAT's own `inference.py`: mono at 16 kHz without its mean, Kaldi's 128 mel energies, cut or filled
with zeros to 1024 frames (10.24 s: what follows is not heard), then normalised. A fill of zeros is no silence: in the
normalised spectrum it is 0.47, louder than most sound. MOVA's paper states classes, but no thresholds.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores.features.kaldi import fbank
from mova_engine.scores.features.resample import resample
from mova_engine.scores.networks.eat import Eat, EatSizes

RATE = 16000
MEAN, DEVIATION = -4.268, 4.569
# AudioSet's numbers of the classes that make speech and singing.
SPEECH = (0, 1, 2, 3, 4, 5)
SINGING = (27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37)
MUSIC = (137,)
SILENCE = (500,)


def eat_input(samples: Tensor, sample_rate: int, sizes: EatSizes) -> Tensor:
    """Mono samples float32 [n] in -1..1 -> the network's spectrum [frames, bands]. MovaError below 25 ms of sound."""
    sound = resample(samples, sample_rate, RATE)
    mel = fbank(sound - sound.mean(), RATE, mels=sizes.bands)
    if len(mel) == 0:
        raise MovaError(f"{len(samples)} samples at {sample_rate} Hz are less than the 25 ms that tagging needs")
    mel = F.pad(mel[: sizes.frames], (0, 0, 0, max(0, sizes.frames - len(mel))))
    return (mel - MEAN) / (2 * DEVIATION)


@torch.no_grad()
def event_probabilities(network: Eat, sounds: Iterable[Tensor], sample_rate: int) -> Tensor:
    """Probability 0 to 1 of each class, independent of the others: mono sounds [n] -> [b, classes]."""
    spectra = [eat_input(sound, sample_rate, network.sizes) for sound in sounds]
    if not spectra:
        raise MovaError("there is no sound to tag")
    return network(torch.stack(spectra)).sigmoid()


def strongest(probabilities: Tensor, classes: Iterable[int]) -> Tensor:
    """The largest probability among some classes, such as SPEECH or SINGING: [b, classes] -> [b]."""
    return probabilities[:, list(classes)].amax(1)
