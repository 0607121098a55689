"""Sound as it comes back from an AVI file of ffmpeg, which holds MP3: what MOVA's lip sync listens to.

Its script writes each clip to such a file before anything is measured. The encoder delays by 1105 samples, 23 ms at 48
kHz, which AVI has no field for, and keeps 64 kb/s of a mono track.
"""

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from mova_engine.errors import MovaError

ENCODER = "libmp3lame"
# Hz that MP3 has; ffmpeg brings other rates to the nearest one.
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def mp3_rate(rate: int) -> int:
    """The rate at which sound of `rate` Hz is encoded."""
    return min(MP3_RATES, key=lambda each: abs(each - rate))


def through_mp3(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Sound [n] or [n, 2] in -1..1 at one of MP3_RATES, encoded with ffmpeg's defaults and decoded: [m] or [m, 2].

    Samples beyond full scale are cut. MovaError where the media library has no encoder.
    """
    if ENCODER not in av.codecs_available:
        raise MovaError(f"this PyAV cannot encode MP3 ({ENCODER}), through which published lip sync hears")
    layout = "mono" if samples.ndim == 1 else "stereo"
    planes: Any = np.ascontiguousarray(samples.reshape(len(samples), -1).T)
    memory = io.BytesIO()
    with av.open(memory, "w", format="avi") as container:
        stream = container.add_stream(ENCODER, rate=rate, layout=layout, format="fltp")
        frame = av.AudioFrame.from_ndarray(planes, "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    memory.seek(0)
    with av.open(memory, "r") as container:
        parts: list[Any] = [frame.to_ndarray() for frame in container.decode(audio=0)]
    found = np.concatenate(parts, 1).T.astype(np.float32)
    return found[:, 0] if samples.ndim == 1 else found
