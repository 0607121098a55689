"""Embedded text encoder: one fixed pseudo-random vector per word, no weights, no vocabulary and nothing to download.

The vector comes from a hash of the word's UTF-8 bytes, so every machine computes the same one for any language. It
knows nothing of meaning: towers learn from it what each word of the training captions stands for.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mova_engine.codecs.interface import check_prompts, fingerprint
from mova_engine.errors import MovaError

log = logging.getLogger(__name__)

# A run of letters and digits, or one other sign that is not a space.
_PIECE = re.compile(r"\w+|[^\w\s]")
# No piece of a prompt can be this: it holds a space.
_END = "end of text"
# Attention over text has no notion of order: without positions "red on blue" and "blue on red" would be one prompt.
# Smaller than the words, which matter more.
_POSITION_SIZE = 0.5


@lru_cache(maxsize=65536)
def _word_vector(word: str, dim: int) -> np.ndarray:
    """float64 [dim], uniform on [-sqrt 3, sqrt 3): zero mean, unit variance; exact on every platform."""
    bits = np.frombuffer(hashlib.shake_256(word.encode()).digest(4 * dim), dtype="<u4")
    return (bits / 2.0**31 - 1.0) * np.sqrt(3.0)


def count_pieces(text: str) -> int:
    """The rows that a prompt takes: its words and signs, and the end of text."""
    return len(_PIECE.findall(text.lower())) + 1


def _positions(tokens: int, dim: int) -> np.ndarray:
    """Sinusoids [tokens, dim], frequencies 1 down to about 1e-4 (Vaswani et al. 2017), scaled to unit variance."""
    angle = np.arange(tokens)[:, None] * 10000.0 ** (-np.arange((dim + 1) // 2) / max((dim + 1) // 2, 1))
    return np.sqrt(2.0) * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)[:, :dim]


class ByteTextEncoder:
    """TextEncoder of words hashed to vectors: [b, max_tokens, dim], entries of about unit size.

    Prompts are lower-cased and split into words and signs. After the words comes one end-of-text row (all that the
    empty prompt has), then zero rows. Words beyond max_tokens - 1 are dropped, with a logged warning.
    """

    name = "bytes"
    weights = None

    def __init__(
        self, max_tokens: int, dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        if max_tokens < 1 or dim < 1:
            raise MovaError(f"text encoder: tokens and dim must be positive, got {max_tokens} and {dim}")
        self.max_tokens, self.dim = max_tokens, dim
        self.device, self.dtype = torch.device(device or "cpu"), dtype or torch.float32
        self._position = _POSITION_SIZE * _positions(max_tokens, dim)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> [len(prompts), max_tokens, dim] in the encoder's dtype, on its device."""
        check_prompts(prompts)
        out = np.zeros((len(prompts), self.max_tokens, self.dim), dtype=np.float32)
        for row, prompt in zip(out, prompts, strict=True):
            words = _PIECE.findall(prompt.lower())
            if len(words) >= self.max_tokens:
                log.warning(
                    "prompt has %d words and signs, only the first %d are used: '%s'",
                    len(words),
                    self.max_tokens - 1,
                    prompt[:60],
                )
            kept = [*words[: self.max_tokens - 1], _END]
            row[: len(kept)] = [_word_vector(word, self.dim) for word in kept] + self._position[: len(kept)]
        return torch.from_numpy(out).to(self.device, self.dtype)

    def fingerprint(self) -> str:
        """Changes with the number of tokens and their width."""
        return fingerprint("byte-text", {"version": 1, "tokens": self.max_tokens, "dim": self.dim})
