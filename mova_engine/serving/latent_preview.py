"""Previews of a clip while it is made: its clean latents as they are estimated at a step, as one picture.

The embedded codec decodes them as it is. Of the others' latents, 16 numbers a place, a linear map to colours is fitted
to the first clip that was decoded, by least squares, and kept in the store: there are no previews before.
"""

import numpy as np
import torch
from torch import Tensor

from mova_engine.codecs.interface import video_to_uint8
from mova_engine.inference.pipeline import Pipeline
from mova_engine.serving.served_clip import scaled, webp
from mova_engine.serving.store_database import StoreDatabase

_SIDE = 384
_EMBEDDED = "dct"
# Places of latents that are enough for 17 numbers a colour.
_ENOUGH = 20_000


class LatentPreview:
    """Previews of one model's latents."""

    def __init__(self, store: StoreDatabase, model: str, pipeline: Pipeline) -> None:
        self._store, self._key, self._pipeline = store, f"preview {model}", pipeline
        self._decodes = pipeline.mova.config.video_codec == _EMBEDDED
        known = store.measured(self._key).get("map")
        self._map = None if known is None else np.array(known, np.float32)

    def picture(self, state: Tensor, velocity: Tensor, sigma: float) -> bytes | None:
        """A WebP of the clip's middle, from latents [16, t, h, w] at a noise level and their velocity; None: no map."""
        latents = (state.float() - sigma * velocity.float()).cpu()
        if self._decodes:
            codec = self._pipeline.codecs.video
            assert codec is not None, "a pipeline has its video codec"
            with torch.no_grad():
                frames = torch.cat([video_to_uint8(part[0]) for part in codec.decode_frames(latents[None])])
            return webp(scaled(frames[len(frames) // 2].numpy(), _SIDE))
        if self._map is None:
            return None
        middle = latents[:, latents.shape[1] // 2].numpy().reshape(latents.shape[0], -1).T
        colours = np.clip(np.c_[middle, np.ones(len(middle), np.float32)] @ self._map, 0, 255)
        return webp(scaled(colours.reshape(*latents.shape[2:], 3).astype(np.uint8), _SIDE))

    @property
    def learns(self) -> bool:
        """Whether a decoded clip is wanted, to fit the map."""
        return not self._decodes and self._map is None

    def learn(self, latents: Tensor, pictures: list[np.ndarray]) -> None:
        """Fit the map. latents: [16, t, h, w], clean. pictures: of each latent frame one, at the latents' resolution,
        float [h, w, 3] of 255 levels.
        """
        count = min(latents.shape[1], len(pictures))
        x = latents[:, :count].float().cpu().numpy().reshape(latents.shape[0], -1).T
        y, some = np.stack(pictures[:count]).reshape(-1, 3), slice(None, None, max(1, len(x) // _ENOUGH))
        solved = np.linalg.lstsq(np.c_[x, np.ones(len(x))][some], y[some], rcond=None)[0]
        self._map = solved.astype(np.float32)
        self._store.note_measured(self._key, {"map": self._map.tolist()})
