"""Stand-in: windows back to back."""

from fractions import Fraction

from mova_engine.config.curate import CutSettings
from mova_engine.curation.units import ClipWindow, Unit, UnitCut
from mova_engine.data.media.container import open_media, video_stream

FRAMES, FPS = 193, 24.0


def check_cut(settings: CutSettings) -> None:
    pass


def cut_unit(unit: Unit, settings: CutSettings, frames: int = FRAMES, fps: float = FPS) -> UnitCut:
    with open_media(unit.file.path) as container:
        stream = video_stream(container, unit.file.path)
        rate = float(stream.average_rate or 24)
        number = 0
        for _ in container.decode(stream):
            number += 1
        length = number / rate
        width, height = stream.width, stream.height
    count = int(length * fps // frames)
    clips = tuple(ClipWindow(Fraction(i * frames, 1) / Fraction(fps), frames, fps, "other-shot") for i in range(count))
    signals = tuple({"motion": float(i), "silence": 0.1, "clipping": 0.0, "band_edge": 5000.0} for i in range(count))
    return UnitCut({"seconds": length, "width": width, "height": height}, clips, signals)
