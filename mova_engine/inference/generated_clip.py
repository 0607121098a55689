"""The clip that `Pipeline` returns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mova_engine.data.media.write import write_mp4


@dataclass(frozen=True)
class GeneratedClip:
    """A generated clip. frames: uint8 [n, height, width, 3], RGB, at `fps` frames per second. audio: float32
    [channels, samples] at `sample_rate` Hz. prompt, seed: of its request.
    """

    frames: np.ndarray
    audio: np.ndarray
    fps: float
    sample_rate: int
    prompt: str
    seed: int

    def save(self, path: str | Path) -> Path:
        """Write an mp4 file and return its path. Raises MovaError if the file exists or cannot be written."""
        write_mp4(path, self.frames, self.audio[0], fps=self.fps, sample_rate=self.sample_rate)
        return Path(path)
