"""Decodes a clip in a process of its own and hands its frames over in shared memory, so that no file can end this one.

The limits of `reader_process` are for decoding alone: what is then measured of the clip takes as long as it takes.
"""

from fractions import Fraction
from pathlib import Path

from mova_engine.data.clip_edit import Crop
from mova_engine.data.media.reader_process import in_reader_process
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.frame_file import FrameFile


def read_clip(
    path: str | Path,
    *,
    start: float | Fraction = 0,
    seconds: float | Fraction | None = None,
    crop: Crop | None = None,
) -> DecodedClip:
    """Decode a file, or a part of it, once. Arguments and errors: as of `DecodedClip.read`; and FatalFileError where
    the file ends the process that reads it, or exceeds its time or memory.
    """
    store = FrameFile()
    try:
        return _read_into(path, store.place, start, seconds, crop).moved(store)
    except BaseException:
        # The error's traceback would keep its memory, up to 4 GiB, for as long as anyone keeps the error.
        store.close()
        raise


@in_reader_process
def _read_into(
    path: str | Path, place: str, start: float | Fraction, seconds: float | Fraction | None, crop: Crop | None
) -> DecodedClip:
    return DecodedClip.read(path, FrameFile(place), start=start, seconds=seconds, crop=crop)
