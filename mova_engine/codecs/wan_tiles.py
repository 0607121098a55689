"""Wan's autoencoder in spatial tiles: for devices that do not hold the activations of whole pictures.

Layers at the coarsest rows and columns see whole pictures: the middle block, which attends to all of them, and in the
decoder the first upsampling block. They take little memory. The others, which take nearly all, see one tile at a time.
Tiles overlap by twice what these layers see around a point, and are blended linearly in the middle of the overlap,
where both are what the whole would give: a seam is off by no more than the rounding of convolutions over other sizes.

Frames come in the order of the whole, a few at a time. Between them the decoder's causal caches of a tile wait on the
host. The encoder takes one tile through all frames, since its result, a feature map at the latents' rows and columns,
is small.
"""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mova_engine.errors import MovaError

# Frames that a causal convolution keeps of what came before.
_KEPT_FRAMES = 2
# Rows (and columns) for each latent one after the decoder's first upsampling block.
_FRONT_SCALE = 2


@dataclass(frozen=True)
class Tiles:
    """size: latent rows and columns of a tile, at most."""

    size: int

    def spans(self, total: int, reach: float) -> list["Span"]:
        """How `total` rows (or columns) are divided. reach: how many of them a layer's result depends on, to each side.

        Raises MovaError for tiles that have nothing in their middle which is right.
        """
        overlap = math.ceil(2 * reach)
        if self.size < 2 * overlap:
            raise MovaError(
                f"tiles of {self.size} latents are too small: layers see {reach:g} to each side, so that tiles overlap "
                f"by {overlap}; give {2 * overlap} at least"
            )
        if total <= self.size:
            return [Span(0, total)]
        count = math.ceil((total - overlap) / (self.size - overlap))
        length = math.ceil((total + (count - 1) * overlap) / count)
        starts = [round(i * (total - length) / (count - 1)) for i in range(count)]
        ramps = [(after + reach, before + length - reach) for before, after in pairwise(starts)]
        return [
            Span(start, start + length, rising, falling)
            for start, rising, falling in zip(starts, [None, *ramps], [*ramps, None], strict=True)
        ]

    def check(self, height: int, width: int) -> None:
        """MovaError for pictures, in latents, that are smaller than a tile."""
        if height < self.size and width < self.size:
            raise MovaError(
                f"pictures of {height}x{width} latents are smaller than a tile of {self.size}: decode them whole"
            )


@dataclass(frozen=True)
class Span:
    """Rows (or columns) of a tile, in latents. rising, falling: where its part in the result grows from 0 to 1 and
    falls again; None: at the picture's edge.
    """

    begin: int
    end: int
    rising: tuple[float, float] | None = None
    falling: tuple[float, float] | None = None

    def slice(self, scale: int) -> slice:
        """Of a tensor with `scale` rows for each latent one."""
        return slice(self.begin * scale, self.end * scale)

    def weights(self, scale: int) -> Tensor:
        """The part of each row in the result, float32 [rows]; over all tiles they add up to 1."""
        places = (torch.arange(self.begin * scale, self.end * scale, dtype=torch.float64) + 0.5) / scale
        found = torch.ones_like(places)
        for ramp, falls in ((self.rising, False), (self.falling, True)):
            if ramp is not None:
                share = ((places - ramp[0]) / (ramp[1] - ramp[0])).clamp(0, 1)
                found *= 1 - share if falls else share
        return found.float()


class CausalLayers:
    """A run of an autoencoder's layers, with causal caches of their own."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        convolutions = sum(isinstance(part, nn.Conv3d) for layer in layers for part in layer.modules())
        self._caches: list[Any] = [None] * convolutions

    def __call__(self, x: Tensor) -> Tensor:
        """The next frames x [b, c, n, h, w] through all layers."""
        index = [0]
        for layer in self._layers:
            if isinstance(layer, nn.Conv3d):
                x = self._convolved(layer, x, index)
            elif any(isinstance(part, nn.Conv3d) for part in layer.modules()) or hasattr(layer, "resample"):
                x = layer(x, feat_cache=self._caches, feat_idx=index)
            else:
                x = layer(x)
        return x

    def move(self, device: torch.device) -> None:
        """The caches to a device."""
        self._caches = [x.to(device) if isinstance(x, Tensor) else x for x in self._caches]

    def _convolved(self, layer: nn.Module, x: Tensor, index: list[int]) -> Tensor:
        """A convolution that stands alone, as the first and the last do; its cache is the caller's."""
        before = self._caches[index[0]]
        kept = x[:, :, -_KEPT_FRAMES:].clone()
        if kept.shape[2] < _KEPT_FRAMES and before is not None:
            kept = torch.cat([before[:, :, -1:], kept], 2)
        self._caches[index[0]] = kept
        index[0] += 1
        return layer(x, before)


def decoded_in_tiles(decoder: Any, latents: Tensor, tiles: Tiles) -> Generator[Tensor, None, None]:
    """The pictures of `decoder` (a WanDecoder3d) as they are made, float32 in [-1, 1]: for each frame of latents
    [b, c, t, h, w] one part [b, 3, n, 8h, 8w].
    """
    height, width = latents.shape[-2:]
    tiles.check(height, width)
    reach = decoder_reach(decoder)
    places = [(y, x) for y in tiles.spans(height, reach) for x in tiles.spans(width, reach)]
    front = CausalLayers([decoder.conv_in, decoder.mid_block, decoder.up_blocks[0]])
    above = [*decoder.up_blocks[1:], decoder.norm_out, decoder.nonlinearity, decoder.conv_out]
    backs, host = [CausalLayers(above) for _ in places], torch.device("cpu")
    for latent in latents.split(1, 2):
        whole = front(latent)
        if len(places) == 1:
            yield backs[0](whole).clamp(-1, 1).float()
            continue
        pictures: Tensor | None = None
        for (y, x), back in zip(places, backs, strict=True):
            back.move(latents.device)
            tile = back(whole[..., y.slice(_FRONT_SCALE), x.slice(_FRONT_SCALE)]).clamp(-1, 1).float()
            back.move(host)
            pictures = _blended(pictures, tile, y, x, height, width)
        assert pictures is not None, "there is at least one tile"
        yield pictures


def encoded_in_tiles(
    encoder: Any,
    parts: Iterable[Tensor],
    height: int,
    width: int,
    tiles: Tiles,
    skipping: Callable[[], AbstractContextManager[None]],
) -> Generator[Tensor, None, None]:
    """What `encoder` (a WanEncoder3d) makes of `parts` of a video [b, 3, n, 8h, 8w], on its device, part by part.
    height, width: of the latents. skipping: a context within which layers may leave out what repeats itself.
    """
    tiles.check(height, width)
    layers = list(encoder.down_blocks)
    above = 1 + max(index for index, layer in enumerate(layers) if hasattr(layer, "resample"))
    reach = encoder_reach(layers[:above])
    rows, columns = tiles.spans(height, reach), tiles.spans(width, reach)
    video = list(parts)
    features: list[Tensor | None] = [None] * len(video)
    weight = encoder.conv_in.weight
    for y in rows:
        for x in columns:
            front = CausalLayers([encoder.conv_in, *layers[:above]])
            with skipping():
                for index, part in enumerate(video):
                    scale = part.shape[-2] // height
                    tile = front(part[..., y.slice(scale), x.slice(scale)].to(weight))
                    if len(rows) * len(columns) == 1:
                        features[index] = tile.cpu()
                    else:
                        features[index] = _blended(features[index], tile.float().cpu(), y, x, height, width)
    deep = CausalLayers([*layers[above:], encoder.mid_block, encoder.norm_out, encoder.nonlinearity, encoder.conv_out])
    with skipping():
        for feature in features:
            assert feature is not None, "there is at least one tile"
            yield deep(feature.to(weight))


def _blended(whole: Tensor | None, tile: Tensor, y: Span, x: Span, height: int, width: int) -> Tensor:
    """`whole` with the part of a tile [..., h, w] in it, float32. height, width: of the whole, in latents."""
    scale = tile.shape[-2] // (y.end - y.begin)
    if whole is None:
        whole = tile.new_zeros(*tile.shape[:-2], height * scale, width * scale)
    weights = (y.weights(scale)[:, None] * x.weights(scale)).to(tile.device)
    whole[..., y.slice(scale), x.slice(scale)] += weights * tile
    return whole


def decoder_reach(decoder: Any) -> float:
    """How far the layers above the first upsampling block see to each side, in latents."""
    reach, scale = 0.0, _FRONT_SCALE
    for block in decoder.up_blocks[1:]:
        reach += 2 * len(block.resnets) / scale
        if block.upsamplers is not None:
            scale *= 2
            reach += 1 / scale
    return reach + 1 / scale


def encoder_reach(layers: Sequence[Any]) -> float:
    """The same of the encoder's first convolution and the `layers` down to the latents' rows and columns."""
    scale = 2 ** sum(hasattr(layer, "resample") for layer in layers)
    reach = 1 / scale
    for layer in layers:
        reach += 2 / scale
        if hasattr(layer, "resample"):
            scale /= 2
    return reach
