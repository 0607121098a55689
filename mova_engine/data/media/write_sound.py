"""Writes sound alone to files of the formats that training reads: wav, flac, ogg, opus, mp3, m4a."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.error import FFmpegError

from mova_engine.errors import MovaError, suggest

# Suffix -> (container, encoder, sample format, bits a second; 0: lossless). Ogg holds Opus.
FORMATS: dict[str, tuple[str, str, str, int]] = {
    ".wav": ("wav", "pcm_s16le", "s16", 0),
    ".flac": ("flac", "flac", "s16", 0),
    ".ogg": ("ogg", "libopus", "flt", 96_000),
    ".opus": ("ogg", "libopus", "flt", 96_000),
    ".mp3": ("mp3", "libmp3lame", "fltp", 128_000),
    ".m4a": ("ipod", "aac", "fltp", 128_000),
}


def encode_sound_file(path: str | Path, audio: np.ndarray, sample_rate: int = 48000) -> bytes:
    """Mono sound float [n] in [-1, 1] as the content of a file of the format that the suffix of `path` names.

    Encoders that look ahead say so in the file, so that a reader finds sample i at i / sample_rate seconds. Sound
    outside [-1, 1] is clipped. Raises MovaError for another suffix, sound that is not mono and finite, and a rate that
    the format does not have.
    """
    path, audio = Path(path), np.asarray(audio, np.float32)
    if path.suffix not in FORMATS:
        near = suggest(path.suffix, FORMATS)
        raise MovaError(f"{path}: sound is written as {', '.join(FORMATS)}, not '{path.suffix}'.{near}")
    if audio.ndim != 1 or not len(audio) or not np.isfinite(audio).all():
        raise MovaError(f"{path}: sound must be mono [n] and finite, got {list(audio.shape)}")
    container_name, encoder, sample_format, bit_rate = FORMATS[path.suffix]
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format=container_name) as container:
            stream = container.add_stream(encoder, rate=sample_rate, layout="mono")
            assert isinstance(stream, AudioStream), "these encoders are of sound"
            if bit_rate:
                stream.bit_rate = bit_rate
            frame = av.AudioFrame.from_ndarray(np.clip(audio, -1, 1)[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
            # Encoders take sound in frames of their own size.
            size = stream.codec_context.frame_size or 1024
            resampler = av.AudioResampler(format=sample_format, layout="mono", rate=sample_rate, frame_size=size)
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    except (FFmpegError, ValueError) as error:
        raise MovaError(f"{path}: cannot be encoded at {sample_rate} Hz ({error})") from None
    return buffer.getvalue()
