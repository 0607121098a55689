"""Networks of scores at a size that costs nothing: what a user's weights open, for tests of everything around them."""

from pathlib import Path

import torch
from torch import nn

from mova_engine.scores.audiobox import RatingScale
from mova_engine.scores.networks.audiobox_axes import AXES, AudioboxNetwork, AudioboxSizes
from mova_engine.scores.networks.clap import Clap, ClapSizes
from mova_engine.scores.networks.cnn14 import Cnn14, PannsConfig
from mova_engine.scores.networks.eat import Eat, EatSizes
from mova_engine.scores.networks.htsat import HtsatSizes
from mova_engine.scores.networks.imagebind import ImageBind, ImageBindConfig
from mova_engine.scores.networks.passt import Passt, PasstSizes
from mova_engine.scores.networks.roberta import RobertaSizes
from mova_engine.scores.networks.s3fd import MEAN, FaceMaps
from mova_engine.scores.networks.vggish import Vggish
from mova_engine.scores.networks.wavlm import WavlmSizes


class _StandIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)


class TinySynchformer(_StandIn):
    """Features are means of segments; the comparison sees a flash and a click in the same segment as no offset."""

    def video_features(self, segments):
        return segments.mean((-1, -2, -3)).unflatten(2, (8, 2)).mean(3)[..., None].expand(-1, -1, -1, 768)

    def audio_features(self, segments):
        return segments[..., :60].unflatten(-1, (6, 10)).mean((2, 4))[..., None].expand(-1, -1, -1, 768)

    def compare(self, video, audio):
        seen, heard = (x.mean((2, 3)).argmax(1) for x in (video, audio))
        return nn.functional.one_hot((10 + seen - heard).clamp(0, 20), 21).float()


class TinyDetector(_StandIn):
    """Finds a face where the middle of the left, or of the right half of a picture is bright."""

    def forward(self, pictures):
        bright = (pictures + torch.tensor(MEAN)[:, None, None]).mean(1)
        height, width = bright.shape[1:]
        middle = bright[:, height // 3 : height - height // 3].mean(1)
        halves = middle[:, width // 5 : width // 3].mean(1), middle[:, -width // 3 : -width // 5].mean(1)
        face = (torch.stack(halves, 1) > 150).float() * 0.99
        priors = torch.tensor([[0.27, 0.5, 0.3, 0.5], [0.73, 0.5, 0.3, 0.5]])
        return FaceMaps(torch.zeros(1, 2, 4), torch.stack([1 - face, face], -1), priors)


class TinySyncNet(_StandIn):
    """A row of numbers of each window."""

    def lip(self, pictures):
        level = pictures.mean((0, 1, 3, 4)).unfold(0, 5, 1)
        return level @ torch.linspace(-1, 1, 40).reshape(5, 8)

    def sound(self, columns):
        return columns.mean((1, 2)) @ torch.linspace(-1, 1, 160).reshape(20, 8)


class TinyDover(_StandIn):
    """Maps that depend on every pixel."""

    def technical(self, fragments):
        return fragments.mean((1, 3, 4)) / 10

    def aesthetic(self, pictures):
        return pictures.std((1, 3, 4)) / 10


def _audiobox():
    encoder = WavlmSizes(((8, 10, 80), (8, 4, 4)), 16, 1, 2, 16, 8, 2, 8, 16)
    return AudioboxNetwork(AudioboxSizes(encoder)).eval(), {axis: RatingScale(5.0, 1.0) for axis in AXES}


def _clap():
    sound = HtsatSizes(width=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))
    text = RobertaSizes(vocabulary=200, width=16, depth=1, heads=2, hidden=16)
    return Clap(ClapSizes(sound, text, 8)).eval()


_OPENED = {
    "synchformer": TinySynchformer,
    "imagebind": lambda: ImageBind(ImageBindConfig(24, 1, 2, 16, 1, 2, 12)).eval(),
    "clap": _clap,
    "roberta-base": lambda: Path("tokenizer"),
    "syncnet": TinySyncNet,
    "s3fd": TinyDetector,
    "dover": TinyDover,
    "audiobox": _audiobox,
    "eat": lambda: Eat(EatSizes(width=16, depth=1, heads=2)).eval(),
    "cnn14-16k": lambda: Cnn14(PannsConfig(16000, 512, 160, high=8000.0, channels=(2, 4, 8))).eval(),
    "passt": lambda: Passt(PasstSizes(width=16, depth=1, heads=2)).eval(),
    "vggish": lambda: Vggish((2, 2, 4, 4), 16).eval(),
    "cnn14-32k": lambda: Cnn14(PannsConfig(32000, 1024, 320, channels=(2, 4, 8))).eval(),
}


def tiny_tokens(texts, folder):
    """Stands for CLAP's tokenizer: a token for each letter."""
    tokens = torch.tensor([[2 + ord(letter) % 190 for letter in text[:77].ljust(77)] for text in texts])
    return tokens, torch.ones_like(tokens)


class TinyWeights:
    """A folder of weights that holds every file of the manifest, each as a tiny network with seeded weights."""

    def __init__(self):
        self._kept = {}

    def lacking(self, names):
        return ""

    def digest(self, name):
        return "0" * 64

    def open(self, name, device):
        if name not in self._kept:
            torch.manual_seed(0)
            self._kept[name] = _OPENED[name]()
        return self._kept[name]
