"""Numbers of a clip from what one pass over its unit kept: the columns of the scores that measure the same.

Sound is that of the scores, in 16 bits. Motion is measured of two pairs of pictures a second where the score compares
all pictures, and speech by a network that has heard what came before.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from mova_engine.curation.black_bars import Box
from mova_engine.curation.unit_pictures import SeenPictures
from mova_engine.curation.unit_sound import HeardSound, mono_sound
from mova_engine.curation.units import ClipWindow
from mova_engine.errors import MovaError
from mova_engine.scores.features.converted_sound import unit_floats
from mova_engine.scores.loudness import loudness, rms
from mova_engine.scores.motion import mean_motion, motion_of_pair
from mova_engine.scores.sound_quality import band_edge, clipping_share, silence_shares
from mova_engine.scores.speech_activity import longest_pause

# The rate at which loudness is measured.
_LEVEL_RATE = 48000


def shot_signals(clip: ClipWindow) -> dict[str, float]:
    """The shortest of the shots that a clip shows, in seconds."""
    edges = [0.0, *clip.cuts, clip.seconds]
    return {"shot_seconds_shortest": min(after - before for before, after in pairwise(edges))}


def speech_signals(clip: ClipWindow) -> dict[str, float]:
    """How much of a clip with sound is speech."""
    spoken = sum(end - start for start, end in clip.speech)
    found = {"speech_share": spoken / clip.seconds, "speech_seconds": spoken}
    return found | ({"longest_pause": longest_pause(list(clip.speech))} if clip.speech else {})


def sound_signals(sound: HeardSound, start: float, seconds: float) -> dict[str, float]:
    """Silence, band edge, clipping and level of the sound of `seconds` from `start` in the unit on; sound that the film
    does not have there is silent. A number that the sound does not have is left out.
    """
    samples = sound.part(start, seconds)
    floats = np.ascontiguousarray(unit_floats(samples).T)
    silence = silence_shares(floats, sound.rate)
    found = {
        "silence": silence.total,
        "digital_silence": silence.digital,
        "leading_silence": silence.leading,
        "trailing_silence": silence.trailing,
        "clipping": float(np.mean([clipping_share(channel) for channel in floats])),
    }
    if floats.any():
        found["band_edge"] = band_edge(floats, sound.rate)
    return found | _levels(samples, sound)


def _levels(samples: NDArray[np.int16], sound: HeardSound) -> dict[str, float]:
    tensor = torch.from_numpy(mono_sound(sound, samples, _LEVEL_RATE))
    found = {"rms": rms(tensor)}
    try:
        return found | {"lufs": loudness(tensor, _LEVEL_RATE)}
    except MovaError:
        return found  # silence has an amplitude, and no loudness


def motion_signals(
    seen: SeenPictures, start: float, seconds: float, box: Box, shot_of: Callable[[int], int]
) -> dict[str, float]:
    """Mean speed and stillness within `box`, a part of the upright pictures, from `start` in the unit on. shot_of: the
    number of a picture's shot.
    """
    found = []
    for first, second, before, after in seen.pairs:
        begin, end = float(seen.times[first]), float(seen.times[second])
        if start - 1e-3 <= begin and end < start + seconds and shot_of(first) == shot_of(second):
            rows, columns = _small_box(box, seen.size, before.shape)
            found.append(motion_of_pair(before[rows, columns], after[rows, columns], 1 / (end - begin)))
    motion = mean_motion(found)
    return {} if motion is None else {"motion": motion[0], "still_share": motion[1]}


def _small_box(box: Box, size: tuple[int, int], small: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of `box`, in pictures of this size, of the same pictures made small."""
    left, top, right, bottom = box
    rows, columns = (small[0] / size[0], small[1] / size[1])
    return slice(round(top * rows), round(bottom * rows)), slice(round(left * columns), round(right * columns))
