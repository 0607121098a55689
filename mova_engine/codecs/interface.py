"""What every codec and text encoder offers, and the checks they share.

Three small protocols hide what stands behind them: a pretrained autoencoder, or a fixed transform that needs no
download. All of them normalise their latents (about zero mean, unit scale per channel), move their input to their own
device, run without gradients, and give a `fingerprint` that changes whenever the same input could give another output.
`weights` is the module that `memory.residency` moves between host and device, on the meta device or None while it is
not read; always None: constants of a few kB, which stay.
"""

import hashlib
import importlib
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mova_engine.codecs.row_sharding import ALL_ROWS, Rows
from mova_engine.errors import MovaError


@runtime_checkable
class VideoCodec(Protocol):
    """Video <-> latents at stride (4, 8, 8). The first frame alone forms latent frame 0: f = 4n+1 frames give n+1."""

    name: str
    channels: int

    @property
    def weights(self) -> nn.Module | None:
        """The module that may be moved; None: constants of a few kB, or dropped until it is needed."""
        raise NotImplementedError

    @property
    def stride(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels for each latent."""
        raise NotImplementedError

    def encode(self, video: Tensor) -> Tensor:
        """Video [b, 3, f, h, w], RGB in [-1, 1] -> latents [b, 16, 1 + (f-1)/4, h/8, w/8], float32, normalised."""
        raise NotImplementedError

    def decode(self, latents: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        """Latents [b, 16, t, h, w] -> video [b, 3, 1 + 4(t-1), 8h, 8w], float32; of own rows only where `rows` says so.

        Values may leave [-1, 1]; `video_to_uint8` clamps them.
        """
        raise NotImplementedError

    def decode_frames(self, latents: Tensor, rows: Rows = ALL_ROWS) -> Generator[Tensor, None, None]:
        """The video of `decode`, to the bit, in parts [b, 3, n, 8h, 8w] that follow one another, as they are made."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What was fitted to data, as JSON; `build_video_codec(..., state=...)` restores it. Empty: nothing was."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Identity for caches of latents."""
        raise NotImplementedError


@runtime_checkable
class AudioCodec(Protocol):
    """Mono sound <-> latents, `hop` samples each."""

    name: str
    channels: int
    sample_rate: int
    hop: int

    @property
    def weights(self) -> nn.Module | None:
        """The module that may be moved; None: constants of a few kB, or dropped until it is needed."""
        raise NotImplementedError

    def encode(self, audio: Tensor) -> Tensor:
        """Audio [b, 1, n] in [-1, 1] at `sample_rate` -> latents [b, c, ceil(n/hop)], float32.

        The end is padded with zeros to a whole latent.
        """
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, c, t] -> audio [b, 1, t * hop], float32."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What was fitted to data, as JSON; `build_audio_codec(..., state=...)` restores it. Empty: nothing was."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Identity for caches of latents."""
        raise NotImplementedError


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts -> features that the towers attend to without a mask: rows after a prompt's end are zero."""

    name: str
    dim: int
    max_tokens: int

    @property
    def weights(self) -> nn.Module | None:
        """The module that may be moved; None: none, or dropped until it is needed again."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts (b strings) -> [b, max_tokens, dim]. The empty prompt has an encoding of its own, for guidance."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Identity for caches of text features."""
        raise NotImplementedError


def video_from_uint8(video: Tensor) -> Tensor:
    """Frames uint8 [..., f, h, w, 3] -> float32 [..., 3, f, h, w] in [-1, 1]: x / 127.5 - 1."""
    return video.movedim(-1, -4).to(torch.float32) / 127.5 - 1


def video_to_uint8(video: Tensor) -> Tensor:
    """Video [..., 3, f, h, w] -> uint8 frames [..., f, h, w, 3]: clamped to [-1, 1], rounded to the nearest level."""
    levels = (video.to(torch.float32).clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).movedim(-4, -1).contiguous()


def check_video(video: Tensor, stride: tuple[int, int, int]) -> None:
    """Raise MovaError unless `video` is floating point [b, 3, f, h, w] that the stride divides (f = 4n+1)."""
    _check_float(video, "video", "use video_from_uint8 on frames of bytes")
    if video.ndim != 5 or video.shape[1] != 3:
        raise MovaError(f"video must be [batch, 3, frames, height, width], got {list(video.shape)}")
    t, h, w = stride
    frames, height, width = video.shape[2:]
    if frames < 1 or (frames - 1) % t:
        raise MovaError(f"video must have {t}n+1 frames (1, {t + 1}, {2 * t + 1}, ...), got {frames}")
    if height < h or width < w or height % h or width % w:
        raise MovaError(f"video height and width must be multiples of {h} and {w}, got {height}x{width}")


def check_audio(audio: Tensor) -> None:
    """Raise MovaError unless `audio` is floating point [b, 1, n] with n > 0."""
    _check_float(audio, "audio", "scale integer samples to [-1, 1] first")
    if audio.ndim != 3 or audio.shape[1] != 1 or audio.shape[2] < 1:
        raise MovaError(f"audio must be [batch, 1, samples] (one channel), got {list(audio.shape)}")


def check_latents(latents: Tensor, channels: int, dims: str) -> None:
    """Raise MovaError unless `latents` is floating point [b, channels, *dims] (`dims` names the axes, e.g. "t h w")."""
    _check_float(latents, "latents", "")
    if latents.ndim != 2 + len(dims.split()) or latents.shape[1] != channels or 0 in latents.shape[2:]:
        raise MovaError(f"latents must be [batch, {channels}, {', '.join(dims.split())}], got {list(latents.shape)}")


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise MovaError for a bare string, which would pass as a list of its letters."""
    if isinstance(prompts, str):
        raise MovaError(f"prompts must be a list of strings, got one string: '{prompts[:60]}'")


def _check_float(x: Tensor, what: str, advice: str) -> None:
    if not x.is_floating_point():
        raise MovaError(f"{what} must be floating point, got {x.dtype}" + (f"; {advice}" if advice else ""))


def is_meta(device: torch.device | str | None) -> bool:
    """Whether weights are not to be read yet."""
    return device is not None and torch.device(device).type == "meta"


def optional(package: str, attribute: str, what: str) -> Any:
    """Return `attribute` of an optional package, imported now; MovaError says how to install what is missing."""
    try:
        return getattr(importlib.import_module(package), attribute)
    except ModuleNotFoundError as error:
        missing = error.name or package
        raise MovaError(f"{what} needs the package {missing}: pip install 'mova_engine[codecs]'") from error
    # Packages of this size import their parts on demand, and report trouble inside as RuntimeError.
    except (ImportError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise MovaError(f"{what} needs {package}.{attribute}, which this installation cannot give: {reason}") from error


def fingerprint(name: str, facts: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]] = ()) -> str:
    """Return `name:digest`, the digest taken over JSON-able `facts` and named `tensors`.

    Of each tensor it reads name, shape, dtype and up to 4096 evenly spaced values: a fine-tuned weight differs nearly
    everywhere, and reading every byte of an 11 GB text encoder would cost more than what the cache saves.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key, tensor in tensors:
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, -(-flat.numel() // 4096))]
        digest.update(sample.cpu().double().numpy().tobytes())
    return f"{name}:{digest.hexdigest()[:24]}"
