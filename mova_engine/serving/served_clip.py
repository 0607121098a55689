"""The files of a clip that is served: the video, and what a page shows of it before it is played."""

import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mova_engine.config.model import ClipConfig
from mova_engine.inference.encoded_clip import SampleEncoder
from mova_engine.inference.given_clip import STRIDE
from mova_engine.inference.requests import Request

# Longest side of a thumbnail and of a tile of the sheet, in pixels; tiles of a sheet, a row of which has _PER_ROW.
_THUMB, _TILE, _TILES, _PER_ROW = 512, 160, 20, 5
_PEAKS = 400


@dataclass(frozen=True)
class ServedFiles:
    """video: mp4. thumb: the middle picture. sprite: pictures in their order, by rows.
    waveform: JSON, `{"seconds", "peaks"}`, peaks from 0 to 1. solid: whether the clip is of one colour.
    """

    video: bytes
    thumb: bytes
    sprite: bytes
    waveform: bytes
    solid: bool


class ServedClip:
    """A `ClipSink` that makes `ServedFiles`. frames: of the whole clip. kept: takes the first picture of each latent
    frame, at the latents' resolution, float [h, w, 3]; None: nobody wants them.
    """

    def __init__(self, shape: ClipConfig, frames: int, request: Request, kept: list[np.ndarray] | None = None) -> None:
        self._kept = kept
        self._encoder = SampleEncoder(shape, frames, request, 1)
        self._shape, self._count = shape, 0
        count = min(_TILES, frames)
        self._shown = {round(place * (frames - 1) / max(1, count - 1)) for place in range(count)}
        self._middle, self._thumb = frames // 2, b""
        self._tiles: list[Image.Image] = []

    def add(self, pictures: np.ndarray) -> None:
        self._encoder.add(pictures)
        for picture in pictures:
            if self._count in self._shown:
                self._tiles.append(scaled(picture, _TILE))
            if self._count == self._middle:
                self._thumb = webp(scaled(picture, _THUMB))
            if self._kept is not None and self._count % STRIDE == 0:
                (height, width), (_, rows, columns) = picture.shape[:2], self._shape.latent_shape
                places = picture.reshape(rows, height // rows, columns, width // columns, 3)
                self._kept.append(places.mean((1, 3)))
            self._count += 1

    def finish(self, sound: np.ndarray) -> ServedFiles:
        made = self._encoder.finish(sound)
        waveform = json.dumps(_waveform(sound, self._shape.sample_rate)).encode()
        return ServedFiles(made.data, self._thumb, webp(self._sheet()), waveform, made.solid)

    def close(self) -> None:
        self._encoder.close()

    def _sheet(self) -> Image.Image:
        width, height = self._tiles[0].size
        columns = min(_PER_ROW, len(self._tiles))
        sheet = Image.new("RGB", (columns * width, -(-len(self._tiles) // columns) * height))
        for index, tile in enumerate(self._tiles):
            sheet.paste(tile, (index % columns * width, index // columns * height))
        return sheet


def scaled(picture: np.ndarray, side: int) -> Image.Image:
    """A picture uint8 [h, w, 3], no side longer than `side`."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    return image


def webp(image: Image.Image) -> bytes:
    """A picture as a WebP file."""
    out = io.BytesIO()
    image.save(out, "webp", quality=80, method=2)
    return out.getvalue()


def _waveform(sound: np.ndarray, rate: int) -> dict[str, object]:
    parts = np.array_split(np.abs(sound.astype(np.float32)), max(1, min(_PEAKS, len(sound))))
    peaks = [round(min(1.0, float(part.max(initial=0.0))), 4) for part in parts]
    return {"seconds": round(len(sound) / rate, 6), "peaks": peaks}
