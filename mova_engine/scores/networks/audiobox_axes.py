"""Audiobox-Aesthetics: four ratings of a sound from WavLM's layers (Tjandra et al. 2025, arXiv 2502.05139).

The names are those of the released checkpoint (after its prefix "model.").
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.scores.networks.wavlm import Wavlm, WavlmSizes

# Content enjoyment, content usefulness, production complexity, production quality.
AXES = ("CE", "CU", "PC", "PQ")


@dataclass(frozen=True)
class AudioboxSizes:
    """The encoder, and the layers of each axis' projection, with or without a norm between them."""

    encoder: WavlmSizes = field(default_factory=WavlmSizes)
    projection_layers: int = 1
    projection_norm: bool = False


class AudioboxNetwork(nn.Module):
    """Samples [b, n] at 16 kHz and what of them is padding [b, n] -> raw ratings [b, 4] in the order of AXES."""

    def __init__(self, sizes: AudioboxSizes) -> None:
        super().__init__()
        width, layers = sizes.encoder.width, sizes.encoder.depth + 1
        self.wavlm_model = Wavlm(sizes.encoder)
        self.proj_layer = nn.ModuleDict({axis: _projection(width, sizes) for axis in AXES})
        self.layer_weights = nn.ParameterDict({axis: nn.Parameter(torch.full((layers,), 1 / layers)) for axis in AXES})

    def forward(self, samples: Tensor, padding: Tensor) -> Tensor:
        layers, padded = self.wavlm_model(samples, padding)
        heard = (~padded).to(samples.dtype)[..., None]
        count = heard.sum(1).clamp_min(1)
        # Means over frames before the weights of the layers: the same sum, once instead of for each axis.
        means = torch.stack([(x * heard).sum(1) / count for x in layers])
        ratings = []
        for axis in AXES:
            embedding = torch.einsum("lbc,l->bc", means, self.layer_weights[axis].softmax(0))
            ratings.append(self.proj_layer[axis](F.normalize(embedding, dim=-1)))
        return torch.cat(ratings, -1)


def _projection(width: int, sizes: AudioboxSizes) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(sizes.projection_layers - 1):
        layers.append(nn.Linear(width, width))
        if sizes.projection_norm:
            layers.append(nn.LayerNorm(width))
        layers.append(nn.GELU())
    return nn.Sequential(*layers, nn.Linear(width, 1))
