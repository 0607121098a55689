"""The released models' video codec: diffusers' AutoencoderKLWan (Wan 2.1), behind the VideoCodec protocol."""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mova_engine.backend import describe_backend
from mova_engine.codecs.interface import check_latents, check_video, fingerprint, is_meta, optional
from mova_engine.codecs.row_sharding import ALL_ROWS, Rows, convolutions_on
from mova_engine.codecs.static_tail_cache import is_still_somewhere, reused
from mova_engine.codecs.toy.latent_stats import LatentStats
from mova_engine.codecs.wan_tiles import Tiles, decoded_in_tiles, encoded_in_tiles
from mova_engine.errors import MovaError
from mova_engine.files.tensors import check_component, load_component, read_config


class WanVideoCodec:
    """VideoCodec by an AutoencoderKLWan: posterior mode, normalised with the mean and std of its configuration.

    Takes the module over (frozen, eval). It computes in the module's dtype; latents and video are float32.
    """

    name = "wan"

    def __init__(self, vae: Any) -> None:
        # A module of diffusers, which says nothing of its attributes' types.
        self.vae: Any = vae.requires_grad_(False).eval()
        for module in vae.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.register_forward_pre_hook(_contiguous)
        config = vae.config
        if getattr(config, "patch_size", None) is not None:
            raise MovaError("video codec 'wan' is Wan 2.1's: this autoencoder cuts pictures into patches, as Wan 2.2's")
        self.channels = config.z_dim
        self.stride = (config.scale_factor_temporal, config.scale_factor_spatial, config.scale_factor_spatial)
        self.stats = LatentStats(tuple(config.latents_mean), tuple(config.latents_std))
        # Pictures are encoded and decoded in tiles of these; None: whole.
        self.tiles: Tiles | None = None
        self._fingerprint: dict[Tiles | None, str] = {}

    @property
    def weights(self) -> nn.Module | None:
        """The autoencoder, which may be moved; None while it is dropped."""
        return self.vae

    @weights.setter
    def weights(self, vae: nn.Module | None) -> None:
        self.vae = vae

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video [b, 3, 4n+1, h, w] in [-1, 1] -> latents [b, 16, n+1, h/8, w/8], float32. MovaError on other shapes.

        The first frame, then four frames at a time, go to the codec's device and through the encoder, whose causal
        cache makes the result that of the whole. Where frames repeat, as in the first-frame condition, what would come
        out the same to the bit is not computed.
        """
        check_video(video, self.stride)
        vae, parts = self.vae, []
        chunks = [x for x in (video[:, :, :1], *video[:, :, 1:].split(self.stride[0], 2)) if x.shape[2]]
        still = is_still_somewhere(video, self.stride[0])

        def skipping() -> AbstractContextManager[None]:
            return reused(vae.encoder) if still else nullcontext()

        if self.tiles is not None:
            height, width = (size // self.stride[1] for size in video.shape[-2:])
            parts = list(encoded_in_tiles(vae.encoder, chunks, height, width, self.tiles, skipping))
        else:
            with self._caches(), skipping():
                for chunk in chunks:
                    vae._enc_conv_idx = [0]
                    caches = {"feat_cache": vae._enc_feat_map, "feat_idx": vae._enc_conv_idx}
                    parts.append(vae.encoder(self._place(chunk), **caches))
        mean, _ = vae.quant_conv(torch.cat(parts, 2)).chunk(2, 1)
        return self.stats.normalise(mean.float())

    def decode(self, latents: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        """Latents [b, 16, n+1, h, w] -> video [b, 3, 4n+1, 8h, 8w], float32 in [-1, 1]. MovaError on other shapes."""
        return torch.cat(list(self.decode_frames(latents, rows)), 2)

    @torch.no_grad()
    def decode_frames(self, latents: Tensor, rows: Rows = ALL_ROWS) -> Generator[Tensor, None, None]:
        """The frames of `decode` as they are made: 1, then 4 for each latent frame. The decoder's causal cache makes
        them those of the whole; the device never holds more of them.
        """
        check_latents(latents, self.channels, "t h w")
        vae = self.vae
        if self.tiles is not None:
            if rows.size > 1:
                raise MovaError("processes that share a clip decode some of its rows each: leave tiles out")
            x = vae.post_quant_conv(self._place(self.stats.denormalise(latents.float())))
            yield from decoded_in_tiles(vae.decoder, x, self.tiles)
            return
        with self._caches(), nullcontext() if rows.size == 1 else self._sharing(rows):
            x = vae.post_quant_conv(self._place(self.stats.denormalise(latents.float())))
            for index, latent in enumerate(x.split(1, 2)):
                vae._conv_idx = [0]
                first = {"first_chunk": True} if index == 0 else {}
                frames = vae.decoder(latent, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **first)
                yield frames.clamp(-1, 1).float()

    def state(self) -> dict[str, Any]:
        """Empty: the statistics are part of the checkpoint's configuration."""
        return {}

    def fingerprint(self) -> str:
        """Changes with the weights, their dtype, the statistics, and tiles."""
        if self.tiles not in self._fingerprint:
            facts = {"version": 1, "stats": self.stats.state()}
            facts |= {} if self.tiles is None else {"tiles": self.tiles.size}
            found = fingerprint("wan-video", facts, self.vae.state_dict().items())
            self._fingerprint[self.tiles] = found
        return self._fingerprint[self.tiles]

    @contextmanager
    def _caches(self) -> Iterator[None]:
        """Within the block encoder and decoder have causal caches of their own, which are freed at its end, whatever
        ends it: evicting the module would leave them on the device.
        """
        self.vae.clear_cache()
        try:
            yield
        finally:
            self.vae.clear_cache()

    @contextmanager
    def _sharing(self, rows: Rows) -> Iterator[None]:
        """Within the block the decoder's upper part, which does nearly all of its work, computes on own rows.

        The middle block attends to whole pictures; with what precedes it, it takes 2% of the products, and every
        process computes it.
        """
        decoder = self.vae.decoder
        hook = decoder.mid_block.register_forward_hook(lambda module, inputs, output: rows.take(output))
        try:
            with convolutions_on(rows, decoder.up_blocks, decoder.conv_out):
                yield
        finally:
            hook.remove()

    def _place(self, x: Tensor) -> Tensor:
        return x.to(self.vae.device, self.vae.dtype)


def _contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs in the order of their dimensions, where the device's convolutions need it: a clip's pixels, and what
    attention gives back, have their channels last.
    """
    return tuple(
        x.contiguous() if isinstance(x, Tensor) and not describe_backend(x.device.type).channels_last else x
        for x in inputs
    )


def load_wan(
    folder: str | Path, device: torch.device | str | None = None, dtype: torch.dtype = torch.bfloat16
) -> nn.Module:
    """Load an AutoencoderKLWan from its folder (`config.json` and safetensors); on the meta device, read headers alone.

    Raises MovaError without diffusers, and one that names missing, unexpected or mis-shaped tensors.
    """
    autoencoder = optional("diffusers", "AutoencoderKLWan", "video codec 'wan'")
    config = read_config(folder)
    with torch.device("meta"):
        vae = autoencoder.from_config(config)
    if is_meta(device):
        check_component(vae, folder)
        return vae
    load_component(vae, folder, device=device or "cpu", dtype=dtype)
    return vae
