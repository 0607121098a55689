"""DNSMOS: how people would rate the quality of speech, 1 to 5, by the published networks of the DNS challenge.

P.808 is one overall rating (Reddy et al. 2021, arXiv 2010.15258); P.835 rates speech (SIG), background (BAK) and both
(OVRL) (Reddy et al. 2022, arXiv 2110.01763). MOVA's table has the mean P.808 rating. The networks hear 16 kHz mono and
nothing above 8 kHz. Their files come with the PyPI wheel `speechmos` (MIT), or lie in a folder that the user names.

Conventions: `mova` is the published scripts' way, which counts windows in floating point and so drops 17 of the 51
windows of a minute, as well as a last window that begins within the sound's last, incomplete second; `corrected` takes
each whole window and refuses digital silence, which the networks rate above white noise.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mova_engine.errors import MovaError, require_package
from mova_engine.scores.features.mel import decibels, mel_filter_bank, mel_spectrum
from mova_engine.scores.overlapping_windows import OverlappingWindows
from mova_engine.scores.wheel_networks import WheelFile, onnx_session

Array = NDArray[np.float64]
DnsmosConvention = Literal["mova", "corrected"]

RATE = 16000
WINDOW_SECONDS, WINDOW = 9.01, 144160
# The P.808 network's mel spectrum: the last samples of a window are dropped, which leaves 900 frames.
N_FFT, HOP, MELS, DROPPED = 321, 160, 120, 160
TOP_DB = 80.0
# From the P.835 networks' outputs to ratings, highest power first.
POLYNOMIALS = {
    "standard": {
        "OVRL": [-0.06766283, 1.11546468, 0.04602535],
        "SIG": [-0.08397278, 1.22083953, 0.0052439],
        "BAK": [-0.13166888, 1.60915514, -0.39604546],
    },
    "personalised": {
        "OVRL": [-0.00533021, 0.005101, 1.18058466, -0.11236046],
        "SIG": [-0.01019296, 0.02751166, 1.19576786, -0.24348726],
        "BAK": [-0.04976499, 0.44276479, -0.1644611, 0.96883132],
    },
}
AXES = ("SIG", "BAK", "OVRL")
_WHEEL = ("speechmos", "speechmos==0.0.1.1", "DNSMOS")
# Each network's file: its places in the wheel and in the DNS challenge's repository, and its SHA-256.
FILES = {
    "P808": WheelFile(
        *_WHEEL,
        ("dnsmos_models/model_v8.onnx", "DNSMOS/model_v8.onnx"),
        "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
    ),
    "P835": WheelFile(
        *_WHEEL,
        ("dnsmos_models/sig_bak_ovr.onnx", "DNSMOS/sig_bak_ovr.onnx"),
        "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    ),
    "P835-personalised": WheelFile(
        *_WHEEL,
        ("pdnsmos_models/sig_bak_ovr.onnx", "pDNSMOS/sig_bak_ovr.onnx"),
        "9e3a197449ca2177f0997afec3bd6b890117ce2f17b89d6eea7fa0d47272c81c",
    ),
}


@dataclass(frozen=True)
class SpeechRatings:
    """Ratings of one sound, means over its windows; p808 [w] and p835 [w, 3] are the networks' outputs by window.

    hops: windows asked for, of which `mova` drops some. sig, bak, ovrl: means of the ratings of each window.
    """

    hops: int
    p808: Array
    p835: Array
    sig: float
    bak: float
    ovrl: float

    @property
    def p808_mos(self) -> float:
        """The published number: the mean P.808 rating, 1 to 5, up is better."""
        return float(self.p808.mean())


def polynomial_ratings(raw: ArrayLike, *, personalised: bool = False) -> Array:
    """Ratings [..., 3] in the order SIG, BAK, OVRL from the P.835 networks' outputs [..., 3]."""
    x = np.asarray(raw, np.float64)
    table = POLYNOMIALS["personalised" if personalised else "standard"]
    ratings = [np.polyval(table[axis], x[..., i]) for i, axis in enumerate(AXES)]
    return np.stack(ratings, -1).astype(np.float64)


def p808_input(window: Array) -> NDArray[np.float32]:
    """The P.808 network's input [900, 120] from a window of samples [144160]: mel bands in dB against the loudest.

    Mel bands of a centred power spectrum with zeros beyond the ends, 80 dB deep, (dB + 40) / 40.
    """
    samples = torch.from_numpy(np.ascontiguousarray(window[:-DROPPED]))
    bank = mel_filter_bank(RATE, N_FFT, MELS, scale="slaney", norm="slaney")
    level = decibels(mel_spectrum(samples, bank, HOP, n_fft=N_FFT, pad_mode="constant"))
    level = (level - level.max()).clamp_min(-TOP_DB)
    return ((level + 40) / 40).float().numpy()


def windows_of(samples: Array, convention: DnsmosConvention) -> tuple[list[Array], int]:
    """Windows of 9.01 s, one each second, of samples [n] at 16 kHz, and how many were asked for.

    A sound shorter than a window is appended to itself, doubling, until it is as long. Raises MovaError for no sound
    and, when corrected, for digital silence.
    """
    if len(samples) == 0:
        raise MovaError("there is no sound to rate")
    if convention == "corrected" and not samples.any():
        raise MovaError("the sound is digital silence, which DNSMOS cannot rate")
    while len(samples) < WINDOW:
        samples = np.concatenate([samples, samples])
    if convention == "corrected":
        hops = (len(samples) - WINDOW) // RATE + 1
        return [samples[i * RATE : i * RATE + WINDOW] for i in range(hops)], hops
    hops = int(math.floor(len(samples) / RATE) - WINDOW_SECONDS) + 1
    # (i + 9.01) * 16000 is one sample short of a window for i = 7..23 in floating point.
    cut = [samples[i * RATE : int((i + WINDOW_SECONDS) * RATE)] for i in range(hops)]
    return [window for window in cut if len(window) == WINDOW], hops


def at_16k(samples: ArrayLike, sample_rate: int) -> Array:
    """Mono samples [n] at 16 kHz in float64, resampled by soxr's high quality, as librosa does it.

    The edge of the low pass is in the ratings: with torchaudio's resampling P.808 moves by 0.1.
    """
    x = np.asarray(samples, np.float64)
    if x.ndim != 1:
        raise MovaError(f"DNSMOS rates mono sound [n], got {list(x.shape)}")
    if sample_rate == RATE:
        return x
    require_package("soxr", f"DNSMOS of sound at {sample_rate} Hz", "; or resample it to 16000 Hz before")
    import soxr

    found = soxr.resample(x, sample_rate, RATE, quality="HQ")
    wanted = math.ceil(len(x) * RATE / sample_rate)
    return np.pad(found[:wanted], (0, max(0, wanted - len(found))))


class Dnsmos:
    """The networks, loaded when they are first asked. folder: where their files lie; None is the installed wheel."""

    def __init__(self, folder: Path | None = None, threads: int = 1) -> None:
        self.folder, self.threads = folder, threads

    @cached_property
    def p808(self) -> Any:
        return self._session("P808")

    @cached_property
    def p835(self) -> OverlappingWindows:
        return self._of_windows("P835")

    @cached_property
    def personalised(self) -> OverlappingWindows:
        return self._of_windows("P835-personalised")

    def rate(
        self,
        samples: ArrayLike,
        sample_rate: int,
        *,
        convention: DnsmosConvention,
        personalised: bool = False,
    ) -> SpeechRatings:
        """Ratings of mono samples [n] in -1..1. personalised: P.835 judges one speaker's voice, others are noise.

        Raises MovaError for sound that cannot be rated, and where a package or a network's file is missing.
        """
        windows, hops = windows_of(at_16k(samples, sample_rate), convention)
        raw = self.p835_outputs(windows, personalised=personalised)
        sig, bak, ovrl = polynomial_ratings(raw, personalised=personalised).mean(0).tolist()
        return SpeechRatings(hops, self.p808_outputs(windows), raw, sig, bak, ovrl)

    def p808_outputs(self, windows: list[Array]) -> Array:
        """The P.808 rating of each window [w]."""
        return np.array([_run(self.p808, p808_input(window))[0] for window in windows], np.float64)

    def p835_outputs(self, windows: list[Array], *, personalised: bool = False) -> Array:
        """The P.835 network's outputs SIG, BAK, OVRL of each window [w, 3], before the polynomials."""
        network = self.personalised if personalised else self.p835
        return network.outputs([window.astype(np.float32) for window in windows], RATE)

    def _session(self, name: str) -> Any:
        return FILES[name].session(self.folder, self.threads)

    def _of_windows(self, name: str) -> OverlappingWindows:
        require_package("onnxruntime", FILES[name].what)
        model = network_file(name, self.folder).read_bytes()
        return OverlappingWindows(model, lambda part: onnx_session(part, self.threads))


def _run(session: Any, window: NDArray[np.float32]) -> Any:
    """A network's output for one window; batches of windows would round otherwise than the published scripts."""
    return session.run(None, {session.get_inputs()[0].name: window[None]})[0][0]


def network_file(name: str, folder: Path | None = None) -> Path:
    """The file of a network of FILES, its contents checked: in `folder`, or in the installed wheel `speechmos`.

    Raises MovaError where the file is missing or another one.
    """
    return FILES[name].path(folder)
