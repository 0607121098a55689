"""RoBERTa's encoder with its pooler (Liu et al. 2019, arXiv 1907.11692), under the official names, for inference."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.errors import MovaError


@dataclass(frozen=True)
class RobertaSizes:
    """Widths and counts; `padding` is the token that fills, and positions count from the one after it."""

    vocabulary: int = 50265
    positions: int = 514
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    padding: int = 1
    eps: float = 1e-5


class RobertaEmbeddings(nn.Module):
    """Tokens [b, n] -> [b, n, d]: word, position and segment, normalised. Positions skip padding."""

    def __init__(self, sizes: RobertaSizes) -> None:
        super().__init__()
        self.padding = sizes.padding
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.width)
        self.token_type_embeddings = nn.Embedding(1, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=sizes.eps)

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != self.padding
        positions = real.long().cumsum(1) * real + self.padding
        words = self.word_embeddings(tokens) + self.token_type_embeddings.weight[0]
        return self.LayerNorm(words + self.position_embeddings(positions))


class RobertaProjections(nn.Module):
    """Queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)


class RobertaResidual(nn.Module):
    """LayerNorm of a residual and a projection back to the width."""

    def __init__(self, inputs: int, sizes: RobertaSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=sizes.eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class RobertaAttention(nn.Module):
    """Self-attention [b, n, d] with a mask [b, 1, 1, n] of tokens that are heard."""

    def __init__(self, sizes: RobertaSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.self = RobertaProjections(sizes.width)
        self.output = RobertaResidual(sizes.width, sizes)

    def forward(self, x: Tensor, heard: Tensor) -> Tensor:
        split = (*x.shape[:2], self.heads, -1)
        q, k, v = (part(x).view(split).transpose(1, 2) for part in (self.self.query, self.self.key, self.self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=heard)
        return self.output(mixed.transpose(1, 2).flatten(2), x)


class RobertaDense(nn.Module):
    """A linear layer named `dense`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class RobertaLayer(nn.Module):
    """Attention, then a feed-forward with exact GELU, each normalised after its residual."""

    def __init__(self, sizes: RobertaSizes) -> None:
        super().__init__()
        self.attention = RobertaAttention(sizes)
        self.intermediate = RobertaDense(sizes.width, sizes.hidden)
        self.output = RobertaResidual(sizes.hidden, sizes)

    def forward(self, x: Tensor, heard: Tensor) -> Tensor:
        x = self.attention(x, heard)
        return self.output(F.gelu(self.intermediate(x)), x)


class RobertaLayers(nn.Module):
    """The stack of layers."""

    def __init__(self, sizes: RobertaSizes) -> None:
        super().__init__()
        self.layer = nn.ModuleList(RobertaLayer(sizes) for _ in range(sizes.depth))

    def forward(self, x: Tensor, heard: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, heard)
        return x


class RobertaText(nn.Module):
    """Tokens [b, n] and a mask [b, n], 0 for what is padding -> pooled text [b, d], tanh of the first token's state."""

    def __init__(self, sizes: RobertaSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embeddings = RobertaEmbeddings(sizes)
        self.encoder = RobertaLayers(sizes)
        self.pooler = RobertaDense(sizes.width, sizes.width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        most = self.sizes.positions - self.sizes.padding - 1
        if tokens.shape[1] > most:
            raise MovaError(f"{tokens.shape[1]} tokens are more than this network's {most} positions")
        heard = mask.bool()[:, None, None]
        return torch.tanh(self.pooler(self.encoder(self.embeddings(tokens), heard)[:, 0]))
