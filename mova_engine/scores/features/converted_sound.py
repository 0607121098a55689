"""Sound at another rate and with other channels, sample for sample as the ffmpeg program converts it."""

from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from mova_engine.errors import MovaError

Format = Literal["s16", "flt"]
# Samples that are converted at once: 20 s at 48 kHz.
_BLOCK = 20 * 48000


def convert_sound(
    samples: NDArray[np.int16] | NDArray[np.float32],
    source_rate: int,
    rate: int,
    *,
    channels: Literal["mono", "stereo"] = "mono",
    sample_format: Format = "s16",
    source_layout: str | None = None,
    mean: bool = False,
) -> NDArray[np.int16] | NDArray[np.float32]:
    """Sound [n] or [n, channels] at source_rate as [m] or [m, 2] at `rate` (Hz), int16 or float32.

    What `ffmpeg -ac 1|2 -ar RATE -f s16le|f32le` gives. Between 16-bit samples ffmpeg 5 resamples in 16 bits, later
    ones in floats (up to 3 units apart); published scores were computed with the former, so it is done here.

    mean: float mono is the mean of stereo, as 16-bit mono is; ffmpeg gives 0.7071 times the sum of both, which is 3 dB
    more and may lie beyond full scale.
    """
    table = samples[:, None] if samples.ndim == 1 else samples
    if table.dtype not in (np.int16, np.float32):
        raise MovaError(f"sound must be int16 or float32, got {table.dtype}")
    source_format = "s16" if table.dtype == np.int16 else "flt"
    layout = source_layout or {1: "mono", 2: "stereo"}.get(table.shape[1], f"{table.shape[1]}c")
    graph = Graph()
    head = graph.add_abuffer(format=source_format, sample_rate=source_rate, layout=layout)
    inner = ":internal_sample_fmt=s16p" if source_format == sample_format == "s16" else ""
    bound = ":rematrix_maxval=1" if mean else ""
    resampler = graph.add("aresample", f"{rate}{inner}{bound}")
    form = graph.add("aformat", f"sample_fmts={sample_format}:channel_layouts={channels}")
    sink = graph.add("abuffersink")
    for left, right in ((head, resampler), (resampler, form), (form, sink)):
        left.link_to(right)
    graph.configure()
    parts: list[Any] = []
    # In blocks: the graph makes several copies of what it is given at once.
    for at in range(0, len(table), _BLOCK):
        packed: Any = np.ascontiguousarray(table[at : at + _BLOCK]).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format=source_format, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = source_rate, at, Fraction(1, source_rate)
        graph.push(frame)
        parts += _pulled(graph)
    graph.push(None)
    parts += _pulled(graph)
    found: Any = np.concatenate(parts) if parts else np.zeros(0, table.dtype)
    return found if channels == "mono" else found.reshape(-1, 2)


def _pulled(graph: Graph) -> list[Any]:
    """The samples that a graph has ready."""
    parts: list[Any] = []
    while True:
        try:
            pulled = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return parts
        assert isinstance(pulled, av.AudioFrame)
        parts.append(pulled.to_ndarray().reshape(-1))


def unit_floats(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """int16 samples as float32 in -1..1."""
    return samples.astype(np.float32) / np.float32(32768)


def averaged_stereo_32k(samples: NDArray[np.int16], source_rate: int) -> NDArray[np.float32]:
    """Mono sound at 32 kHz as MOVA's evaluation takes it for IS and CLAP: 16-bit stereo, averaged.

    ffmpeg spreads a mono source over both channels at equal power, so it comes out at 0.7071 of its level.
    """
    return averaged_stereo(np.asarray(convert_sound(samples, source_rate, 32000, channels="stereo"), np.int16))


def averaged_stereo(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """16-bit stereo [n, 2] -> the mean of both channels, float32 [n] in -1..1."""
    return unit_floats(samples).mean(1)
