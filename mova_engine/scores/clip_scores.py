"""The functions of the declared scores: from a decoded clip to {column: number}."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mova_engine.errors import MovaError, require_package
from mova_engine.scores.decoded_clip import DecodedClip, Measured, placed
from mova_engine.scores.dnsmos import RATE as DNSMOS_RATE
from mova_engine.scores.dnsmos import Dnsmos, DnsmosConvention, network_file
from mova_engine.scores.optional_opencv import opencv

# Rate of the pictures in which lips are looked for.
_LAG_FPS = 24.0
_LEVEL_RATE = 48000


def speech_lag(clip: DecodedClip) -> dict[str, float]:
    """How far the mouth lags behind the voice, in seconds; positive where the sound is early."""
    from mova_engine.scores.speech_lag import clip_lag

    return {"speech_lag": clip_lag(clip, _LAG_FPS).frames / _LAG_FPS}


def loudness(clip: DecodedClip) -> Measured:
    """Amplitude, and the loudness of sound that has one, of the channels' mean and the silence before a late start."""
    import torch

    from mova_engine.scores.loudness import loudness as integrated
    from mova_engine.scores.loudness import rms

    mono = clip.sound(_LEVEL_RATE)
    sound = torch.tensor(placed(mono, max(0, round(clip.soundtrack.start * _LEVEL_RATE))))
    found = {"rms": rms(sound)}
    try:
        return Measured(found | {"lufs": integrated(sound, _LEVEL_RATE)}, None)
    except MovaError as error:
        return Measured(found, None, _cancelled(clip, mono) or str(error))  # silence has an amplitude


def sound_quality(clip: DecodedClip) -> Measured:
    """Silence, band edge and clipping, each the mean of the channels, at the sound's own rate."""
    from mova_engine.scores.sound_quality import band_edge, clipping_share, silence_shares

    rate = clip.soundtrack.rate
    sound = clip.channels()
    silence = silence_shares(sound, rate)
    found = {
        "silence": silence.total,
        "digital_silence": silence.digital,
        "leading_silence": silence.leading,
        "trailing_silence": silence.trailing,
        "clipping": float(np.mean([clipping_share(channel) for channel in sound])),
    }
    try:
        return Measured(found | {"band_edge": band_edge(sound, rate)}, None)
    except MovaError as error:
        return Measured(found, None, str(error))


def sound_quality_of_mova(clip: DecodedClip) -> Measured:
    """Silence, signal-to-noise ratio and bandwidth as MOVA's evaluation has them, of the mean of the channels."""
    from mova_engine.scores.published_sound import published_bandwidth, published_silence

    sound = clip.channels().mean(0)
    silence = published_silence(sound)
    values = {"silence_mova": silence.ratio, "bandwidth_mova": published_bandwidth(sound, clip.soundtrack.rate)}
    if silence.snr is None:
        return Measured(values, None, "no ratio: there is no silence between sounds, or no noise in it")
    return Measured(values | {"snr_mova": silence.snr}, None)


def av_align(clip: DecodedClip, *, convention: str) -> Measured:
    """AV-Align. mova: at the pictures' own size, as MOVA's evaluation has it. corrected: of small pictures, motion in
    heights of the picture, so that a film's size does not matter; a clip with neither onset nor peak has no number.
    """
    from mova_engine.scores import av_align as align

    if convention == "mova":
        flow = align.mean_flow(align.grey(picture) for picture in clip.pictures_of(range(len(clip.times))))
        peaks = align.motion_peaks(flow, clip.fps)
    else:
        pictures = clip.small_pictures
        flow = align.mean_flow(map(align.grey, pictures)) / pictures.shape[1]
        peaks = align.motion_peaks(flow, clip.fps, align.LEAST_SHIFT)
    onsets = align.onset_times(align.onset_strength(np.array(clip.sound(align.SAMPLE_RATE), np.float32)))
    if convention != "mova" and not onsets and not peaks:
        raise MovaError("there is neither an onset of sound nor a peak of motion")
    evidence = {"onsets": onsets, "peaks": peaks, "fps": clip.fps}
    return Measured(av_align_of_pair(evidence, evidence), evidence)


def av_align_of_pair(sound: dict[str, Any], pictures: dict[str, Any]) -> dict[str, float]:
    """The score of one clip's onsets against the motion of another."""
    from mova_engine.scores.av_align import intersection_over_union

    return {"av_align": intersection_over_union(sound["onsets"], pictures["peaks"], pictures["fps"])}


def dnsmos(clip: DecodedClip, *, convention: DnsmosConvention) -> dict[str, float]:
    """Ratings of speech; of 16-bit mono as the ffmpeg program gives it, which is what published scripts rate."""
    samples = np.asarray(clip.sound(DNSMOS_RATE, sample_format="s16"), np.float64) / 32768
    if convention == "corrected" and (reason := _cancelled(clip, samples)):
        raise MovaError(reason)
    ratings = _dnsmos().rate(samples, DNSMOS_RATE, convention=convention)
    return {
        "dnsmos_p808": ratings.p808_mos,
        "dnsmos_sig": ratings.sig,
        "dnsmos_bak": ratings.bak,
        "dnsmos_ovrl": ratings.ovrl,
    }


def _cancelled(clip: DecodedClip, mono: NDArray[Any]) -> str:
    """Why mono sound is silent where the channels are not; "" for all other sound."""
    if mono.any() or not clip.soundtrack.samples.any():
        return ""
    return "the channels cancel each other out in mono (opposite phases), which is what is measured"


def check_av_align() -> None:
    """MovaError without OpenCV."""
    opencv("AV-Align")


def check_dnsmos() -> None:
    """MovaError without what runs the networks, or without their files."""
    require_package("onnxruntime", "DNSMOS")
    for network in ("P808", "P835"):
        network_file(network)


@lru_cache(1)
def _dnsmos() -> Dnsmos:
    return Dnsmos()
