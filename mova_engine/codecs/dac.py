"""MOVA's audio autoencoder: a DAC encoder and decoder around a continuous (Gaussian) latent, 50 latents a second."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mova_engine.codecs.dac_layers import Conv1d, Convolution, Decoder, Encoder
from mova_engine.codecs.interface import check_audio, check_latents, fingerprint, is_meta
from mova_engine.errors import MovaError
from mova_engine.files.tensors import check_component, load_component, read_config, stored_tensors

log = logging.getLogger(__name__)

# Settings of the vector quantiser, which the continuous variant does not have.
_QUANTISER = {"n_codebooks", "codebook_size", "codebook_dim", "quantizer_dropout"}


@dataclass(frozen=True)
class DacConfig:
    """The released audio VAE's `config.json`; the defaults are its values."""

    encoder_dim: int = 128
    encoder_rates: tuple[int, ...] = (2, 3, 4, 5, 8)
    latent_dim: int = 128
    decoder_dim: int = 2048
    decoder_rates: tuple[int, ...] = (8, 5, 4, 3, 2)
    sample_rate: int = 48000
    continuous: bool = True
    use_weight_norm: bool = False

    def __post_init__(self) -> None:
        if not self.continuous:
            raise MovaError("audio VAE: continuous=false (a vector-quantised DAC) is not MOVA's audio VAE")
        encoder, decoder, dim = self.encoder_rates, self.decoder_rates, self.decoder_dim
        if math.prod(encoder) != math.prod(decoder):
            raise MovaError(f"audio VAE: encoder_rates {encoder} and decoder_rates {decoder} have different products")
        if dim % 2 ** len(decoder):
            raise MovaError(f"audio VAE: decoder_dim {dim} cannot be halved {len(decoder)} times")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DacConfig":
        """Read a `config.json`. Settings that a continuous DAC does not know are named in a warning."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(k for k in values if k not in known | _QUANTISER and not k.startswith("_"))
        if unknown:
            log.warning("audio VAE: settings not used: %s", ", ".join(unknown))
        chosen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known and v is not None
        }
        if values.get("latent_dim", 0) is None:
            # DAC's own default: as wide as the encoder's last layer.
            chosen["latent_dim"] = chosen["encoder_dim"] * 2 ** len(chosen["encoder_rates"])
        return cls(**chosen)

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return math.prod(self.encoder_rates)


class Posterior(NamedTuple):
    """Gaussian over latents: mean and log-variance, [b, latent_dim, t] each."""

    mean: Tensor
    logvar: Tensor


class Dac(nn.Module):
    """The audio VAE. Parameter names are the released checkpoint's."""

    def __init__(
        self, config: DacConfig, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        factory = {"device": device, "dtype": dtype}
        options = {"weight_norm": config.use_weight_norm, **factory}
        self.encoder = Encoder(config.encoder_dim, config.encoder_rates, config.latent_dim, **options)
        self.quant_conv = Conv1d(config.latent_dim, 2 * config.latent_dim, 1, weight_norm=False, **factory)
        self.post_quant_conv = Conv1d(config.latent_dim, config.latent_dim, 1, weight_norm=False, **factory)
        self.decoder = Decoder(config.latent_dim, config.decoder_dim, config.decoder_rates, **options)

    def pad(self, audio: Tensor) -> Tensor:
        """Audio [b, 1, n], padded with zeros on the right to a multiple of the hop."""
        return functional.pad(audio, (0, -audio.shape[-1] % self.config.hop))

    def encode(self, audio: Tensor) -> Posterior:
        """Audio [b, 1, n] at 48 kHz in [-1, 1] -> posterior over ceil(n / hop) latents, logvar clamped to [-30, 20]."""
        mean, logvar = self.quant_conv(self.encoder(self.pad(audio))).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30, 20))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, latent_dim, t] -> audio [b, 1, t * hop] in (-1, 1)."""
        return self.decoder(self.post_quant_conv(latents))

    def fuse_weight_norm(self) -> "Dac":
        """Turn every pair of `weight_g` and `weight_v` into the one `weight` it gives, in place: the same function."""
        for module in self.modules():
            if isinstance(module, Convolution):
                module.fuse_weight_norm()
        self.config = replace(self.config, use_weight_norm=False)
        return self


def load_dac(folder: str | Path, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Dac:
    """Load an audio VAE from its folder (`config.json` and safetensors), with or without weight norm, as it was stored;
    on the meta device, read headers alone.

    Raises MovaError that names missing, unexpected or mis-shaped tensors.
    """
    config = DacConfig.from_dict(read_config(folder))
    # Both forms give the same function, so the file decides, whatever the configuration says.
    weight_norm = any(name.endswith(".weight_g") for name in stored_tensors(folder))
    dac = Dac(replace(config, use_weight_norm=weight_norm), device="meta")
    if is_meta(device):
        check_component(dac, folder)
        return dac
    load_component(dac, folder, device=device or "cpu", dtype=dtype)
    return dac


class DacCodec:
    """AudioCodec by MOVA's audio VAE: `encode` gives the posterior's mean, which the released model uses as it is.

    It takes the module over: weight norm is fused, parameters are frozen.
    """

    name = "dac"

    def __init__(self, dac: Dac) -> None:
        # Any: it is None while it is dropped, and nothing is called then.
        self.dac: Any = dac.fuse_weight_norm().requires_grad_(False).eval()
        self.channels = dac.config.latent_dim
        self.sample_rate = dac.config.sample_rate
        self.hop = dac.config.hop
        self._fingerprint: str | None = None

    @property
    def weights(self) -> nn.Module | None:
        """The autoencoder, which may be moved; None while it is dropped."""
        return self.dac

    @weights.setter
    def weights(self, dac: nn.Module | None) -> None:
        self.dac = dac

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio [b, 1, n] in [-1, 1] -> latents [b, 128, ceil(n/960)], float32. MovaError on other shapes."""
        check_audio(audio)
        return self.dac.encode(self._place(audio)).mean.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, 128, t] -> audio [b, 1, t * 960], float32 in (-1, 1). MovaError on other shapes."""
        check_latents(latents, self.channels, "t")
        return self.dac.decode(self._place(latents)).float()

    def state(self) -> dict[str, Any]:
        """Empty: nothing is fitted."""
        return {}

    def fingerprint(self) -> str:
        """Changes with the weights."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint("dac-audio", {"version": 1}, self.dac.state_dict().items())
        return self._fingerprint

    def _place(self, x: Tensor) -> Tensor:
        # Latents come from the model with their channels last.
        return x.to(self.dac.quant_conv.bias).contiguous()
