"""The released models' text encoder: transformers' UMT5 and its tokenizer, behind the TextEncoder protocol."""

import hashlib
import html
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mova_engine.codecs.interface import check_prompts, fingerprint, is_meta, optional
from mova_engine.errors import MovaError
from mova_engine.files.tensors import stored_tensors

log = logging.getLogger(__name__)

_WHAT = "text encoder 'umt5'"
_SHARED = frozenset({"shared.weight", "encoder.embed_tokens.weight"})


def clean_prompt(text: str, fix_text: Callable[[str], str]) -> str:
    """Wan's prompt cleaning: `fix_text` (ftfy's), HTML entities decoded twice, runs of white space made one space."""
    return " ".join(html.unescape(html.unescape(fix_text(text))).split())


class Umt5TextEncoder:
    """TextEncoder by a UMT5 encoder: [b, max_tokens, dim] in the module's dtype, rows after a prompt's end are zero.

    Takes the module over (frozen, eval). Prompts are cleaned as in Wan, which needs the package ftfy: without it curly
    quotes and damaged characters would silently give other tokens. Longer prompts are cut, with a warning.
    """

    name = "umt5"

    def __init__(self, encoder: Any, tokenizer: Any, max_tokens: int) -> None:
        # None while the weights are dropped; they may be moved.
        self.weights: Any = encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.dim = encoder.config.d_model
        self._fix_text = optional("ftfy", "fix_text", _WHAT)
        self._fingerprint: str | None = None

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> [len(prompts), max_tokens, dim], on the encoder's device."""
        check_prompts(prompts)
        texts = [clean_prompt(prompt, self._fix_text) for prompt in prompts]
        # Always padded to the full length, so that a prompt's features do not depend on its neighbours in the batch.
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        mask = tokens.attention_mask
        for text in (text for text, row in zip(texts, mask, strict=True) if row.all()):
            self._warn_if_cut(text)
        device = self.weights.device
        features = self.weights(tokens.input_ids.to(device), mask.to(device)).last_hidden_state
        return features.masked_fill(mask.to(device)[..., None] == 0, 0)

    def fingerprint(self) -> str:
        """Changes with the weights, their dtype, the vocabulary and the number of tokens."""
        if self._fingerprint is None:
            vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()))
            facts = {"version": 1, "tokens": self.max_tokens, "vocab": hashlib.sha256(vocabulary.encode()).hexdigest()}
            self._fingerprint = fingerprint("umt5-text", facts, self.weights.state_dict().items())
        return self._fingerprint

    def _warn_if_cut(self, text: str) -> None:
        count = len(self.tokenizer(text, verbose=False).input_ids)
        if count > self.max_tokens:
            log.warning("prompt has %d tokens, only the first %d are used: '%s'", count, self.max_tokens, text[:60])


def load_umt5(
    encoder_folder: str | Path,
    tokenizer_folder: str | Path,
    max_tokens: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Umt5TextEncoder:
    """Load the encoder (`config.json` and safetensors) and its tokenizer from their folders; nothing is downloaded. On
    the meta device the weights are not read.

    Raises MovaError for a missing package, folder or file, and for weights that do not fit.
    """
    for folder in (encoder_folder, tokenizer_folder):
        if not Path(folder).is_dir():
            raise MovaError(f"{_WHAT}: {folder} is not a folder")
    encoder_class = optional("transformers", "UMT5EncoderModel", _WHAT)
    tokenizer_class = optional("transformers", "AutoTokenizer", _WHAT)
    options = {"local_files_only": True}
    try:
        if is_meta(device):
            with torch.device("meta"):
                encoder = encoder_class(encoder_class.config_class.from_pretrained(encoder_folder, **options))
            # By name, as transformers compares them: one of the two names of the shared embedding is stored.
            stored, wanted = stored_tensors(encoder_folder).keys(), encoder.state_dict().keys()
            lacking = {name for name in wanted - stored if name not in _SHARED or not stored & _SHARED}
            info = {"missing_keys": lacking}
        else:
            encoder, info = encoder_class.from_pretrained(
                encoder_folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
        tokenizer = tokenizer_class.from_pretrained(tokenizer_folder, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MovaError(f"{_WHAT}: cannot load {encoder_folder} and {tokenizer_folder}: {reason}") from error
    problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if problems:
        raise MovaError(f"{_WHAT}: {encoder_folder} does not fit UMT5EncoderModel: {problems}")
    return Umt5TextEncoder(encoder.to(device or "cpu"), tokenizer, max_tokens)
