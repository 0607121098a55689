"""Small films for tests of curation's runs: seconds of moving bars with a tone, some of them silent or still."""

from pathlib import Path

import av
import numpy as np

RATE, FPS = 16000, 24


def write_films(folder: Path, count: int, seconds: float = 4.0) -> list[Path]:
    """Films of which each has another content: every third is silent, every fourth stands still."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_film(folder / f"film {i:02}.mp4", i, seconds, loud=i % 3 != 2, moves=i % 4 != 3) for i in range(count)
    ]


def write_film(path: Path, seed: int, seconds: float = 4.0, *, loud: bool = True, moves: bool = True) -> Path:
    """One film, 160x96."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=FPS)
        video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
        audio = container.add_stream("aac", rate=RATE)
        for i in range(round(seconds * FPS)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(_picture(seed, i if moves else 0))))
        for first in range(0, round(seconds * RATE), 1024):
            frame = av.AudioFrame.from_ndarray(_sound(seed, first, loud), format="fltp", layout="mono")
            frame.rate, frame.pts = RATE, first
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


def _picture(seed: int, i: int) -> np.ndarray:
    picture = np.full((96, 160, 3), 40 + seed % 50, np.uint8)
    left = (3 * i + 7 * seed) % 130
    picture[20:80, left : left + 30] = (220, 200 - seed % 100, 60)
    return picture


def _sound(seed: int, first: int, loud: bool) -> np.ndarray:
    time = (first + np.arange(1024)) / RATE
    tone = sum(np.sin(2 * np.pi * (200 + 20 * seed) * k * time) / k for k in range(1, 20))
    return (0.2 * loud * tone[None]).astype(np.float32)
