"""Files that hold exactly the pictures and samples they were given, for tests of what is measured of a clip."""

from fractions import Fraction

import av
import numpy as np

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def write_lossless(path, pictures=None, sound=None, *, rate=16000, fps=25, sound_start=0.0):
    """Pictures uint8 [t, h, w, 3], and samples int16 or float32 [n] or [n, channels] at `rate`, the first after
    sound_start seconds; a Matroska file.
    """
    with av.open(str(path), "w") as container:
        streams = []
        if pictures is not None:
            stream = container.add_stream("ffv1", rate=fps)
            stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], "bgr0"
            frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(p), format="rgb24") for p in pictures]
            streams.append((stream, frames))
        if sound is not None:
            table = sound.reshape(len(sound), -1)
            kind, codec = ("s16", "pcm_s16le") if sound.dtype == np.int16 else ("flt", "pcm_f32le")
            layout = _LAYOUTS[table.shape[1]]
            stream = container.add_stream(codec, rate=rate, layout=layout)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(table).reshape(1, -1), kind, layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, round(sound_start * rate), Fraction(1, rate)
            streams.append((stream, [frame]))
        for stream, frames in streams:
            for frame in [*frames, None]:
                container.mux(stream.encode(frame))
    return path
