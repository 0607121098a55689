"""LAION's CLAP: sound and text in one space (Wu et al. 2023, arXiv 2211.06687), with fusion of long sounds.

The names are those of `630k-audioset-fusion-best.pt`, under its entry "state_dict" and after its prefix "module.".
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.scores.networks.htsat import Htsat, HtsatSizes
from mova_engine.scores.networks.roberta import RobertaSizes, RobertaText

# A buffer of old checkpoints that nothing reads.
DROPPED = frozenset({"text_branch.embeddings.position_ids"})


@dataclass(frozen=True)
class ClapSizes:
    """Both branches, and the width of the space that they share."""

    sound: HtsatSizes = field(default_factory=HtsatSizes)
    text: RobertaSizes = field(default_factory=RobertaSizes)
    joint: int = 512


class ClapTransform(nn.Module):
    """Two layers that training puts after an embedding; part of the checkpoint, unused for scores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sequential = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width))


class Clap(nn.Module):
    """Embeddings of unit length [b, joint] of sounds and of texts; their product is the cosine."""

    def __init__(self, sizes: ClapSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.logit_scale_a = nn.Parameter((torch.ones([]) / 0.07).log())
        self.logit_scale_t = nn.Parameter((torch.ones([]) / 0.07).log())
        self.audio_branch = Htsat(sizes.sound)
        self.text_branch = RobertaText(sizes.text)
        self.text_transform = ClapTransform(sizes.joint)
        self.text_projection = _projection(sizes.text.width, sizes.joint)
        self.audio_transform = ClapTransform(sizes.joint)
        self.audio_projection = _projection(sizes.sound.outputs, sizes.joint)

    def embed_sound(self, mels: Tensor, longer: Tensor) -> Tensor:
        """mels [b, 4, frames, mels] in dB and longer [b], as `scores.clap_score.fused_mels` makes them."""
        return F.normalize(self.audio_projection(self.audio_branch(mels, longer)), dim=-1)

    def embed_text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [b, n] of roberta-base's tokenizer, mask [b, n]: 0 where a token is padding."""
        return F.normalize(self.text_projection(self.text_branch(tokens, mask)), dim=-1)


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
