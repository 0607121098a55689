"""The clip that `Pipeline` returns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mova_engine.data.media.write import write_mp4


@dataclass(frozen=True)
class GeneratedClip:
    """frames: uint8 [n, height, width, 3], RGB, `fps` a second; audio: float32 [channels, samples] at `sample_rate`."""

    frames: np.ndarray
    audio: np.ndarray
    fps: float
    sample_rate: int
    prompt: str
    seed: int

    def save(self, path: str | Path) -> Path:
        """Write an mp4 and return its path. Raises MovaError where it cannot, and for a file that is there already."""
        write_mp4(path, self.frames, self.audio[0], fps=self.fps, sample_rate=self.sample_rate)
        return Path(path)
