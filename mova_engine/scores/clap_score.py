"""CLAP score: the cosine between a sound's and its prompt's embedding by LAION's CLAP, -1 to 1, up is better.

Conventions: `mova` is MOVA's table: sound at 32 kHz is handed to a network made for 48 kHz, which hears it 1.5 times
faster and a fifth higher; its loudest sample is brought to -1 dB and everything rounded to 16 bits. `corrected`
resamples to 48 kHz. Both repeat sounds of less than 10 s (480000 samples) a whole number of times before silence fills
the rest. A longer sound is heard as a whole, shrunk, and in three pieces of it, whose places are drawn: `seed` fixes
them, where the published scripts draw from an unseeded generator.

Source: MOVA `evaluation/metrics/audio_is_clap/eval_audio_is_clap.py` and laion_clap.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mova_engine.errors import MovaError, require_package
from mova_engine.scores.features.mel import decibels, mel_filter_bank, mel_spectrum
from mova_engine.scores.features.resample import resample
from mova_engine.scores.networks.clap import Clap
from mova_engine.scores.networks.htsat import HtsatSizes

ClapConvention = Literal["mova", "corrected"]
# The rate that MOVA's script reads sound at, and hands on as if it were the network's own 48 kHz.
PUBLISHED_RATE = 32000
PEAK_DB = -1.0
TEXT_TOKENS = 77
# The example of transformers' documentation of RoBERTa's tokenizer.
_EXAMPLE, _EXAMPLE_TOKENS = "Hello world", [0, 31414, 232, 2]


def at_peak(samples: NDArray[np.floating[Any]], level: float = PEAK_DB) -> NDArray[np.float64]:
    """Samples scaled so that the loudest has `level` dB of full scale, in float64. MovaError for silence."""
    x = np.asarray(samples)
    peak = np.abs(x).max(initial=0)
    if not peak > 0:
        raise MovaError("the sound is digital silence, which has no CLAP score")
    return np.float64(10 ** (level / 20)) / np.float64(peak) * x.astype(np.float64)


def in_16_bits(samples: NDArray[np.floating[Any]]) -> NDArray[np.int16]:
    """Samples cut to -1..1, times 32767, truncated towards zero; the network hears them divided by 32767 again."""
    return (np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)


def from_16_bits(values: NDArray[np.int16]) -> NDArray[np.float32]:
    """The inverse of `in_16_bits`, but for what that lost."""
    return (values / 32767.0).astype(np.float32)


def heard_by_clap(samples: NDArray[np.floating[Any]], sample_rate: int, convention: ClapConvention) -> Tensor:
    """Mono samples [n] -> what the network hears as 48 kHz, float32 [n'], at -1 dB and in steps of 16 bits.

    `mova` resamples to 32 kHz and leaves it there; the published scripts have ffmpeg read the sound at that rate.
    """
    rate = PUBLISHED_RATE if convention == "mova" else HtsatSizes().sample_rate
    sound = resample(torch.from_numpy(np.asarray(samples, np.float32)), sample_rate, rate)
    return torch.from_numpy(from_16_bits(in_16_bits(at_peak(sound.numpy()))))


def log_mel(samples: Tensor, sizes: HtsatSizes) -> Tensor:
    """Samples [n] -> mel bands in dB [1 + n // hop, mels]: HTK's scale, no norm, reflected at the ends."""
    bank = _bank(sizes).to(samples.device)
    return decibels(mel_spectrum(samples, bank, sizes.hop, n_fft=sizes.n_fft))


@lru_cache(4)
def _bank(sizes: HtsatSizes) -> Tensor:
    return mel_filter_bank(sizes.sample_rate, sizes.n_fft, sizes.mels, sizes.low, sizes.high, scale="htk", norm=None)


@dataclass(frozen=True)
class FusedMels:
    """What the sound branch reads of one sound: mels [4, frames, mels] and whether it is longer than the network's
    clip.

    starts: first frames of the three pieces of a long sound (front, middle, back), else empty.
    """

    mels: Tensor
    longer: bool
    starts: tuple[int, ...] = ()


def fused_mels(samples: Tensor, sizes: HtsatSizes, random: np.random.RandomState) -> FusedMels:
    """Mel spectra of samples [n] at the network's rate: of the whole (repeated, padded or shrunk) and of three pieces.

    random: draws the places of the pieces of a long sound, one in each third of the places there are.
    """
    n, clip = len(samples), sizes.clip_samples
    if n == 0:
        raise MovaError("there is no sound to embed")
    if n <= clip:
        repeated = samples.repeat(clip // n)
        mel = log_mel(F.pad(repeated, (0, clip - len(repeated))), sizes)
        return FusedMels(mel.expand(4, -1, -1), False)
    mel = log_mel(samples, sizes)
    frames = clip // sizes.hop + 1
    if len(mel) == frames:
        return FusedMels(mel.expand(4, -1, -1), False)
    thirds = np.array_split(np.arange(len(mel) - frames + 1), 3)
    starts = tuple(int(random.choice(third)) if len(third) else int(random.choice([0])) for third in thirds)
    whole = F.interpolate(mel[None, None], (frames, sizes.mels), mode="bilinear", antialias=True)[0, 0]
    pieces = [mel[start : start + frames] for start in starts]
    return FusedMels(torch.stack([whole, *pieces]), True, starts)


@torch.no_grad()
def sound_embeddings(network: Clap, sounds: Iterable[Tensor], *, seed: int = 0) -> Tensor:
    """Unit embeddings [b, joint] of sounds [n] at 48 kHz of any lengths, on the network's device.

    seed: of the pieces of long sounds, for each sound anew, so that its embedding depends on no other.
    """
    read = [fused_mels(x, network.sizes.sound, np.random.RandomState(seed)) for x in sounds]
    return embedded(network, read)


@torch.no_grad()
def embedded(network: Clap, read: Sequence[FusedMels]) -> Tensor:
    """Unit embeddings [b, joint] of what was read of sounds; MovaError for none."""
    if not read:
        raise MovaError("there is no sound to embed")
    mels = torch.stack([x.mels for x in read])
    return network.embed_sound(mels, torch.tensor([x.longer for x in read], device=mels.device))


@torch.no_grad()
def text_embeddings(network: Clap, tokens: Tensor, mask: Tensor) -> Tensor:
    """Unit embeddings [b, joint] of tokenised texts [b, n], as `tokenise` gives them."""
    return network.embed_text(tokens.long(), mask)


def tokenise(texts: Sequence[str], folder: Path) -> tuple[Tensor, Tensor]:
    """Tokens and mask [b, 77] of texts, cut and padded, by roberta-base's tokenizer in a folder that the user names."""
    found = _tokenizer(folder)(
        list(texts), padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"]


@lru_cache(1)
def _tokenizer(folder: Path) -> Any:
    require_package("transformers", "CLAP's tokenizer")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers package raises nothing more definite for files that hold something else
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MovaError(f"{folder} holds no tokenizer of roberta-base: {told}") from None


def check_tokenizer(folder: Path) -> None:
    """MovaError where a folder's tokenizer cannot be read, or splits transformers' example into other tokens."""
    found = _tokenizer(folder)(_EXAMPLE)["input_ids"]
    if list(found) != _EXAMPLE_TOKENS:
        raise MovaError(f"{folder} holds another tokenizer than roberta-base's: '{_EXAMPLE}' gives {list(found)}")


def cosine(sound: Tensor, text: Tensor) -> float:
    """The score of one clip: the cosine of two embeddings [joint]. A set's score is the mean over its clips."""
    return float(F.cosine_similarity(sound[None], text[None], eps=1e-8)[0])


def prompts_of_files(names: Iterable[str], prompts: Mapping[str, str], convention: ClapConvention) -> dict[str, str]:
    """The prompt of each file (its name without a suffix), from prompts by id; files without one are left out.

    `mova` takes the first id that a name begins with, then a "clip_" and hexadecimal digits within it, then its leading
    digits: among ids 1..132, "12_a" gets the prompt of 1. `corrected` takes the id that is the whole name, or the
    longest that ends before something other than a letter or digit.
    """
    found = {}
    for name in names:
        prompt = _first_match(name, prompts) if convention == "mova" else _longest_match(name, prompts)
        if prompt is not None:
            found[name] = prompt
    return found


def _first_match(name: str, prompts: Mapping[str, str]) -> str | None:
    begun = next((prompts[key] for key in prompts if name.startswith(key)), None)
    clip = re.search(r"clip_[a-f0-9]+", name)
    digits = re.match(r"\d*", name)
    within = prompts.get(clip[0]) if clip else None
    leading = prompts.get(digits[0]) if digits and digits[0] else None
    return next((prompt for prompt in (begun, within, leading) if prompt), None)


def _longest_match(name: str, prompts: Mapping[str, str]) -> str | None:
    fitting = [key for key in prompts if name == key or (name.startswith(key) and not name[len(key)].isalnum())]
    return prompts[max(fitting, key=len)] if fitting else None
