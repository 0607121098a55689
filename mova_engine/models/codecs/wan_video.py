"""The released models' video codec: diffusers' AutoencoderKLWan (Wan 2.1), behind the VideoCodec protocol."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mova_engine.models.codecs.base import check_latents, check_video, fingerprint, optional
from mova_engine.models.codecs.latent_stats import LatentStats
from mova_engine.models.weights import load_component, read_config


class WanVideoCodec:
    """VideoCodec by an AutoencoderKLWan: posterior mode, normalised with the mean and std of its configuration.

    Takes the module over (frozen, eval). It computes in the module's dtype; latents and video are float32.
    """

    name = "wan"

    def __init__(self, vae: nn.Module) -> None:
        self.vae = vae.requires_grad_(False).eval()
        for module in vae.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.register_forward_pre_hook(_contiguous)
        config = vae.config
        self.channels = config.z_dim
        self.stride = (config.scale_factor_temporal, config.scale_factor_spatial, config.scale_factor_spatial)
        self.stats = LatentStats(tuple(config.latents_mean), tuple(config.latents_std))
        self._fingerprint: str | None = None

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video [b, 3, 4n+1, h, w] in [-1, 1] -> latents [b, 16, n+1, h/8, w/8], float32. MovaError on other shapes."""
        check_video(video, self.stride)
        return self.stats.normalise(self.vae.encode(self._place(video)).latent_dist.mode().float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, 16, n+1, h, w] -> video [b, 3, 4n+1, 8h, 8w], float32 in [-1, 1]. MovaError on other shapes."""
        check_latents(latents, self.channels, "t h w")
        return self.vae.decode(self._place(self.stats.denormalise(latents.float()))).sample.float()

    def state(self) -> dict[str, Any]:
        """Empty: the statistics are part of the checkpoint's configuration."""
        return {}

    def fingerprint(self) -> str:
        """Changes with the weights, their dtype and the statistics."""
        if self._fingerprint is None:
            facts = {"version": 1, "stats": self.stats.state()}
            self._fingerprint = fingerprint("wan-video", facts, self.vae.state_dict().items())
        return self._fingerprint

    def _place(self, x: Tensor) -> Tensor:
        return x.to(self.vae.device, self.vae.dtype)


def _contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A clip's pixels, and what attention gives back, have their channels last, on which NPUs' convolutions fail."""
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def load_wan(
    folder: str | Path, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Load an AutoencoderKLWan from its folder (`config.json` and safetensors).

    Raises MovaError without diffusers, and one that names missing, unexpected or mis-shaped tensors.
    """
    autoencoder = optional("diffusers", "AutoencoderKLWan", "video codec 'wan'")
    config = read_config(folder)
    with torch.device("meta"):
        vae = autoencoder.from_config(config)
    load_component(vae, folder, device=device or "cpu", dtype=dtype)
    return vae
