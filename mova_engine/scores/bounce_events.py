"""What a viewer of a bounce clip sees and hears: bounces in the picture, clicks in the sound, in seconds.

Only the mp4 file is read, through its own timestamps, by a reader that shares no code with the loader's: an error of
timing there must show here. All that is assumed is the scene: one ball before scenery that does not change along a row,
above a floor in the lower part of the frame. Made for generated clips: blurred or flickering balls, codec blocks, a
noise floor, sound that swells ahead of its click.
"""

# PyAV's decoder gives what its container holds, and SciPy types its functions for several array libraries at once.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from scipy.signal import butter, find_peaks, hilbert, sosfiltfilt

from mova_engine.data.synthetic.bounce import COLOURS, WALL
from mova_engine.errors import MovaError

RATE = 48000  # Hz, to which any clip's sound is resampled

# Picture; lengths are fractions of the frame's height.
MIN_CONTRAST = 24.0  # of 255: below it nothing stands out from the scenery
GREY = 0.07  # chromaticity (see `nearest_colour`) below which a ball has no hue
MIN_FALL = 0.25  # a ball that came down by less did not fall
MIN_RISE = 0.06  # a ball that then rises by less did not bounce
FLOOR_ZONE = 0.6  # turning points above this row are not on the floor
MIN_PERIOD = 0.25  # seconds between bounces
FIT_SPAN = 0.2  # seconds of flight on either side from which the instant of contact is fitted

# Sound.
BAND = (300.0, 3500.0)  # Hz, where clicks live
SMOOTHING = 0.008  # seconds
MIN_LEVEL = 0.02  # of full scale: quieter is silence
MIN_OF_LOUDEST = 0.25  # quieter than this beside the loudest click is not one
MIN_OVER_NOISE = 4.0  # times the median level
MIN_GAP = 0.1  # seconds between clicks
SWELL = 0.08  # seconds before its peak within which a click begins
PITCH_SPAN = 0.07  # seconds of a click in which its pitch is heard


@dataclass(frozen=True)
class Events:
    """One clip as seen and heard. Times in seconds from the first frame, ascending.

    last_frame: time of the last frame. pitches: Hz, one for each click. colour: the known colour nearest to the ball's,
    None where no ball is seen. caption: None where the folder's metadata has none.
    """

    name: str
    last_frame: float
    bounces: tuple[float, ...]
    clicks: tuple[float, ...]
    pitches: tuple[float, ...]
    colour: str | None
    caption: str | None = None


def observe(path: str | Path, caption: str | None = None) -> Events:
    """Watch and listen to one clip; no sound stream is silence. MovaError where it has no picture or is damaged."""
    path = Path(path)
    return events(path.name, *read_streams(path), caption)


def events(name: str, frames: np.ndarray, times: np.ndarray, sound: np.ndarray, caption: str | None = None) -> Events:
    """What is seen and heard in streams as `read_streams` gives them."""
    rows, colour = track_ball(frames)
    bounces = find_bounces(rows, times) if colour else ()
    clicks = find_clicks(sound)
    pitches = tuple(find_pitch(sound, click) for click in clicks)
    return Events(name, float(times[-1]), bounces, clicks, pitches, colour, caption)


def read_streams(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode: frames uint8 [f, h, w, 3], their times [f], sound [n] at 48 kHz, mono.

    On the presentation clock, moved so that the first frame is at 0: sample k sounds at k / 48000 seconds.
    """
    frames, times, pieces = [], [], []
    try:
        with av.open(str(path)) as container:
            video, audio = container.streams.video[:1], container.streams.audio[:1]
            to_rgb = av.video.reformatter.VideoReformatter()
            to_mono = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
            for frame in container.decode(*video, *audio):
                if isinstance(frame, av.VideoFrame):
                    frames.append(to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray())
                    times.append(frame.time)
                else:
                    pieces += to_mono.resample(frame)
            pieces += to_mono.resample(None) if pieces else []
    except (av.FFmpegError, OSError) as error:
        raise MovaError(f"{path}: cannot be decoded ({error.strerror})") from None
    if not frames:
        raise MovaError(f"{path}: has no picture")
    starts = [round((piece.time - times[0]) * RATE) for piece in pieces]
    sound = np.zeros(max([0, *(start + piece.samples for start, piece in zip(starts, pieces, strict=True))]))
    for start, piece in zip(starts, pieces, strict=True):
        heard = slice(max(0, start), max(0, start + piece.samples))
        sound[heard] = piece.to_ndarray()[0][heard.start - start :]
    return np.stack(frames), np.array(times) - times[0], sound


def track_ball(frames: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Follow what stands out from the scenery in frames uint8 [f, h, w, 3]: its centroid's row [f], its colour's name.

    Rows are fractions of the height (0 top, 1 bottom); (nan rows, None) where nothing stands out. The scenery is the
    median of each row over all columns and frames. A frame's weights are the contrast in excess of half of the frame's
    strongest, so that blur and faint ghosts pull little. The colour is taken from a wider surrounding, over which a
    codec may spread it, and without the first frame, which a model is given.
    """
    count, height, width, _ = frames.shape
    difference = frames.astype(np.float64) - np.median(frames, axis=(0, 2), keepdims=True)
    contrast = np.linalg.norm(difference, axis=-1)
    brightest = max(1, height * width // 128)
    strongest = np.partition(contrast.reshape(count, -1), -brightest, axis=1)[:, -brightest:].mean(axis=1)
    if np.median(strongest) < MIN_CONTRAST:
        return np.full(count, np.nan), None
    weights = np.maximum(contrast - strongest[:, None, None] / 2, 0)
    rows = (np.arange(height) + 0.5) / height
    centroids = (weights.sum(axis=2) @ rows) / np.maximum(weights.sum(axis=(1, 2)), 1e-9)
    around = contrast[1:] > strongest[1:, None, None] / 4
    return centroids, nearest_colour(difference[1:][around].sum(axis=0))


def nearest_colour(shade: np.ndarray) -> str:
    """The known colour of the hue of `shade` [3], what a ball adds to the red, green and blue of its scenery.

    Only the hue counts: blur and codecs make a colour paler. The known white stands for all that is nearly grey.
    """
    known = {name: _chromaticity(np.array(rgb, float) - WALL) for name, (rgb, _) in COLOURS.items()}
    seen = _chromaticity(shade)
    if np.linalg.norm(seen) < GREY:
        return min(known, key=lambda name: np.linalg.norm(known[name]))
    hues = {name: c / np.linalg.norm(c) for name, c in known.items() if np.linalg.norm(c) >= GREY}
    return max(hues, key=lambda name: hues[name] @ seen)


def _chromaticity(shade: np.ndarray) -> np.ndarray:
    """Shares of red, green and blue, less a third each: 0 for grey."""
    return shade / max(shade.sum(), 1e-9) - 1 / 3


def find_bounces(rows: np.ndarray, times: np.ndarray) -> tuple[float, ...]:
    """Instants of floor contact from the ball's rows [f] (0 top, 1 bottom) at `times` [f] seconds.

    A bounce is a lowest point near the floor, after a fall and before a rise, so that a touch in the last frame, which
    might as well be a ball still falling, is none. Its instant is fitted between the frames.
    """
    step = np.median(np.diff(times)) if len(times) > 1 else 1.0
    # A clip may end just after a bounce: the rise that it cuts off must not hide it.
    padded = np.append(rows, rows.min())
    peaks, _ = find_peaks(padded, height=FLOOR_ZONE, prominence=MIN_FALL, distance=max(1, round(MIN_PERIOD / step)))
    reach = max(1, round(FIT_SPAN / step))
    bounced = [p for p in peaks if p < len(rows) - 1 and rows[p] - rows[p + 1 : p + 1 + reach].min() >= MIN_RISE]
    return tuple(_contact(rows, times, peak, step) for peak in bounced)


def _contact(rows: np.ndarray, times: np.ndarray, peak: int, step: float) -> float:
    """Least-squares instant b of the flight row(t) = c - v |t - b| + a (t - b)^2 around the lowest frame `peak`.

    Gravity bends both arcs equally and the bounce reverses the speed v: for each candidate b the rest is linear.
    """
    near = np.abs(times - times[peak]) <= FIT_SPAN
    candidates = times[peak] + np.linspace(-1.5 * step, 1.5 * step, 121)
    since = np.abs(times[near] - candidates[:, None]) / FIT_SPAN
    basis = np.stack([np.ones_like(since), -since, since**2], axis=-1)
    solutions = np.linalg.pinv(basis) @ rows[near]
    errors = np.square(np.einsum("bfi,bi->bf", basis, solutions) - rows[near]).sum(axis=1)
    errors[solutions[:, 1] <= 0] = np.inf  # the ball comes down before the contact
    return float(candidates[np.argmin(errors)] if np.isfinite(errors).any() else times[peak])


def find_clicks(sound: np.ndarray) -> tuple[float, ...]:
    """Onsets of clicks in `sound` [n] at 48 kHz, in seconds.

    A click is a peak of the smoothed envelope, well above the clip's noise and not far below its loudest peak. Its
    onset is where the envelope last passed half of the peak on the way up: a transform codec's pre-echo is below that.
    """
    if len(sound) < RATE // 20:
        return ()
    band = butter(4, BAND, "bandpass", fs=RATE, output="sos")
    window = np.hanning(round(SMOOTHING * RATE) | 1)
    envelope = np.convolve(np.abs(hilbert(sosfiltfilt(band, sound))), window / window.sum(), mode="same")
    threshold = max(MIN_LEVEL, MIN_OF_LOUDEST * envelope.max(), MIN_OVER_NOISE * np.median(envelope))
    peaks, _ = find_peaks(envelope, height=threshold, prominence=threshold / 2, distance=round(MIN_GAP * RATE))
    onsets = []
    for peak in peaks:
        start = max(0, peak - round(SWELL * RATE))
        below = np.flatnonzero(envelope[start : peak + 1] < envelope[peak] / 2)
        onsets.append((start + (below[-1] + 1 if len(below) else 0)) / RATE)
    return tuple(onsets)


def find_pitch(sound: np.ndarray, onset: float) -> float:
    """Frequency in Hz of the strongest partial of the click that begins at `onset` seconds."""
    first = round(onset * RATE)
    piece = sound[first : first + round(PITCH_SPAN * RATE)]
    size = 1 << 15  # zero-padded to bins of 1.5 Hz
    frequencies = np.fft.rfftfreq(size, 1 / RATE)
    power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), size)) ** 2
    power[(frequencies < BAND[0]) | (frequencies > BAND[1])] = 0
    return float(frequencies[np.argmax(power)])
