"""By how much the sound of a written clip is off that of its film: both are decoded anew, apart from the reader that
made the clip, and correlated.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from mova_engine.data.media.container import audio_stream, video_stream
from mova_engine.errors import MovaError

# Samples a second at which sounds are compared: 0.06 ms a sample.
RATE = 16_000
# Seconds to both sides in which the sound is looked for, and by which it may be off.
SEARCHED, ALLOWED = 0.5, 0.005
# The least correlation of two codings of one sound, and the share of the best correlation that one within ALLOWED must
# have: a tone is like itself a period later.
LEAST, NEARLY = 0.2, 0.95
# Seconds by which a frame's stamp may differ from the count of samples without being another place.
ROUNDING = 0.0025
# Below this root mean square (-100 dB) there is nothing to compare.
SILENT = 1e-5


@dataclass(frozen=True)
class SoundOffset:
    """seconds: by how much the written sound is late; None: there is none to compare. alike: the correlation there, and
    `near`, the best within ALLOWED.
    """

    seconds: float | None
    alike: float = 0.0
    near: float = 0.0

    @property
    def flaw(self) -> str | None:
        """Why the sound is not where it should be; None if it is."""
        if self.seconds is None:
            return None
        if self.alike < LEAST:
            return f"its sound is not that of its film (correlation {self.alike:.2f})"
        if abs(self.seconds) > ALLOWED and self.near < NEARLY * self.alike:
            return f"its sound is {1000 * self.seconds:+.1f} ms off that of its film"
        return None


def sound_offset(written: Path, film: str | Path, start: float, seconds: float) -> SoundOffset:
    """Compare `seconds` of the sound of the file `written` with that of `film` from `start` on, both counted from the
    file's first picture; `start` may lie before it. Raises MovaError for a file that cannot be decoded.
    """
    made, given = _heard(written, 0.0, seconds), _heard(film, start - SEARCHED, seconds + 2 * SEARCHED)
    if made is None or given is None:
        return SoundOffset(None)
    # The channel that is heard most: of sound that was mixed down it tells the time as well as all of them.
    loudest = given[int(np.argmax(np.square(given).sum(axis=1)))]
    mono = made.mean(axis=0)
    if min(_rms(loudest), _rms(mono)) < SILENT:
        return SoundOffset(None)
    # Differences weigh high tones more, whose place is the more certain.
    alike = np.abs(_correlations(np.diff(mono), np.diff(loudest)))
    lags = (len(alike) // 2 - np.arange(len(alike))) / RATE
    best = int(np.argmax(alike))
    return SoundOffset(float(lags[best]), float(alike[best]), float(alike[np.abs(lags) <= ALLOWED].max()))


def _correlations(short: np.ndarray, long: np.ndarray) -> np.ndarray:
    """Of each place of `short` within `long` the correlation of the two, float64 [len(long) - len(short) + 1]."""
    from scipy.signal import correlate

    product = correlate(long, short, mode="valid", method="fft")
    energy = np.concatenate([[0.0], np.cumsum(np.square(long))])
    covered = energy[len(short) :] - energy[: len(energy) - len(short)]
    scale = np.sqrt(np.maximum(covered, 0) * np.square(short).sum())
    return np.where(scale > 1e-9, product / np.maximum(scale, 1e-9), 0.0)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _heard(path: str | Path, start: float, seconds: float) -> np.ndarray | None:
    """Sound float64 [channels, n] at RATE, by the stamps of its frames; None without a sound track."""
    from scipy.signal import resample_poly

    try:
        with av.open(str(path)) as container:
            first = next(container.decode(video_stream(container, path))).time
        if first is None:
            raise MovaError(f"{path}: its first picture has no time")
        for seek in (True, False):
            with av.open(str(path)) as container:
                stream = audio_stream(container)
                if stream is None:
                    return None
                found = _frames(container, stream, first + start, seconds, seek)
            if found is not None:
                break
    except (av.FFmpegError, StopIteration) as error:
        raise MovaError(f"{path}: cannot be decoded to be compared ({error})") from None
    if found is None:
        return None
    samples, rate = found
    return resample_poly(samples, RATE, rate, axis=1)


def _frames(
    container: InputContainer, stream: AudioStream, begin: float, seconds: float, seek: bool
) -> tuple[np.ndarray, int] | None:
    """(samples float64 [channels, n] from `begin` seconds of the container's clock on, their rate); zeros where there
    are none. None where a search by the index came out too late.
    """
    if seek and begin > 2:
        container.seek(int((begin - 1) * av.time_base))
    rate, placed, ended, counted = stream.rate, None, begin + seconds, -math.inf
    for number, (time, part) in enumerate(_parts(container, stream)):
        if number == 0 and seek and begin > 2 and time > begin:
            return None
        if time >= ended:
            break
        if placed is None:
            placed = np.zeros((len(part), round(seconds * rate)))
        # Containers round stamps, to milliseconds some of them: samples are counted on while the stamps agree.
        counted = counted if abs(time - counted) < ROUNDING else time
        at = round((counted - begin) * rate)
        counted += part.shape[1] / rate
        own = part[: len(placed), max(0, -at) : max(0, placed.shape[1] - at)]
        placed[: len(own), max(0, at) : max(0, at) + own.shape[1]] = own
    return None if placed is None else (placed, rate)


def _parts(container: InputContainer, stream: AudioStream) -> Iterator[tuple[float, np.ndarray]]:
    """(time, samples [channels, n]) of each frame."""
    floats = av.AudioResampler(format="flt")
    for frame in container.decode(stream):
        if frame.time is not None:
            for part in floats.resample(frame):
                yield frame.time, part.to_ndarray().reshape(-1, frame.layout.nb_channels).T
