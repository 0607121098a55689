"""Stand-in: windows back to back."""

from fractions import Fraction

from mova_engine.config.curate import CurateConfig
from mova_engine.curation.units import ClipWindow, Unit, UnitCut
from mova_engine.data.media.container import open_media, video_stream

CUT_VERSION = 1
SIGNAL_COLUMNS: frozenset[str] = frozenset({"motion"})


def cut_unit(unit: Unit, config: CurateConfig) -> UnitCut:
    with open_media(unit.file.path) as container:
        stream = video_stream(container, unit.file.path)
        rate = stream.average_rate
        number = 0
        for _ in container.decode(stream):
            number += 1
        length = number / float(rate)
        width, height = stream.width, stream.height
    frames, fps = config.clip.frames or 193, config.clip.fps or 24.0
    count = int(length * fps // frames)
    clips = tuple(ClipWindow(Fraction(i * frames, 1) / Fraction(fps), frames, fps, "other-shot") for i in range(count))
    return UnitCut(
        {"seconds": length, "width": width, "height": height}, clips, tuple({"motion": float(i)} for i in range(count))
    )
