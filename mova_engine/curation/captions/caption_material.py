"""What models are shown of a clip that is not written: some of its pictures, and its sound."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mova_engine.config.model import ClipConfig
from mova_engine.data.clip_edit import ClipEdit
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.write import encode_wav
from mova_engine.errors import MovaError

# Rate of the sound, which models that hear take, and the multiple of pixels of a clip's sides.
RATE, _MULTIPLE = 16000, 16
_QUALITY = 90


@dataclass(frozen=True)
class ClipMaterial:
    """pictures: JPEG files' bytes, in the order of time; samples: int16 [n] at 16 kHz, None where nothing is heard."""

    pictures: tuple[bytes, ...]
    samples: np.ndarray | None

    @property
    def wave(self) -> bytes | None:
        """The sound as a WAVE file."""
        if self.samples is None:
            return None
        return encode_wav("sound.wav", self.samples.astype(np.float32) / 32768, RATE)


def read_material(row: Mapping[str, Any], pictures: int, side: int) -> ClipMaterial:
    """The material of a clip, a row of `clips.parquet`. pictures: how many of it; side: pixels of their longer side at
    most.

    Raises MovaError where the clip cannot be read.
    """
    scale = min(1.0, side / max(row["width"], row["height"]))
    height, width = (max(_MULTIPLE, round(row[name] * scale / _MULTIPLE) * _MULTIPLE) for name in ("height", "width"))
    shape = ClipConfig(int(row["frames"]), height, width, float(row["fps"]), sample_rate=RATE)
    clip = read_clip(row["video_path"], shape, start=float(row["start"]), silent="zeros", edit=_edit(row))
    chosen = [(2 * k + 1) * shape.frames // (2 * pictures) for k in range(min(pictures, shape.frames))]
    # The last latent of the sound reaches beyond the clip.
    samples = np.round(clip.audio[: round(shape.duration * RATE)] * 32767).clip(-32768, 32767).astype(np.int16)
    return ClipMaterial(tuple(_jpeg(clip.pictures[i]) for i in chosen), samples if clip.heard else None)


def _edit(row: Mapping[str, Any]) -> ClipEdit:
    sides = [row.get(f"crop_{name}") for name in ("x", "y", "width", "height")]
    if any(side is None for side in sides) != all(side is None for side in sides):
        raise MovaError(f"a crop has four numbers, got {sides}")
    crop = None if sides[0] is None else tuple(int(side) for side in sides if side is not None)
    return ClipEdit(crop, float(row.get("sound_shift") or 0), float(row.get("gain_db") or 0))  # pyright: ignore[reportArgumentType]


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
