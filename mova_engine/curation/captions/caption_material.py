"""What models are shown of a clip that is not written: some of its pictures, and its sound."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from mova_engine.config.model import ClipConfig
from mova_engine.curation.accepted_clips import AcceptedClip
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.write import encode_wav

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
    # Without black around it: of that there is nothing to tell.
    edit = replace(AcceptedClip.of(row).edit, pad=None)
    shape = ClipConfig(int(row["frames"]), height, width, float(row["fps"]), sample_rate=RATE)
    clip = read_clip(row["video_path"], shape, start=float(row["start"]), silent="zeros", edit=edit)
    chosen = [(2 * k + 1) * shape.frames // (2 * pictures) for k in range(min(pictures, shape.frames))]
    # The last latent of the sound reaches beyond the clip.
    samples = np.round(clip.audio[: round(shape.duration * RATE)] * 32767).clip(-32768, 32767).astype(np.int16)
    return ClipMaterial(tuple(_jpeg(clip.pictures[i]) for i in chosen), samples if clip.heard else None)


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
