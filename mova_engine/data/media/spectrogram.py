"""Pictures of sound alone, for contact sheets: its spectrogram, cut into frames."""

import numpy as np

# Samples of a window, and the pixels of a frame.
WINDOW = 1024
HEIGHT, WIDTH = 96, 48
# What is drawn black, in dB below the loudest.
FLOOR_DB = 80.0


def spectrogram_frames(audio: np.ndarray, frames: int) -> np.ndarray:
    """The spectrogram of mono sound float32 [n] as pictures uint8 [frames, 96, 48, 3]: low frequencies at the bottom,
    brightness in dB.
    """
    columns = frames * WIDTH
    padded = np.pad(audio.astype(np.float32), (WINDOW // 2, WINDOW))
    starts = (np.arange(columns) * len(audio) / columns).astype(int)
    spans = np.stack([padded[start : start + WINDOW] for start in starts]) * np.hanning(WINDOW).astype(np.float32)
    power = np.abs(np.fft.rfft(spans, axis=1))[:, : WINDOW // 4].T[::-1]
    loud = 20 * np.log10(np.maximum(power, 1e-9) / max(float(power.max()), 1e-6))
    grey = np.clip(255 * (1 + loud / FLOOR_DB), 0, 255).astype(np.uint8)
    tiles = np.repeat(grey[:, :, None], 3, 2).reshape(len(grey), frames, WIDTH, 3).swapaxes(0, 1)
    return np.stack([_scaled(tile) for tile in tiles])


def _scaled(tile: np.ndarray) -> np.ndarray:
    """A tile of WIDTH columns in the height of a frame."""
    step = len(tile) / HEIGHT
    bands = (np.arange(HEIGHT) * step).astype(int)
    return np.maximum.reduceat(tile, bands, 0)
