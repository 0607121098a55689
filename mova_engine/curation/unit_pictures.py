"""The pictures of a unit, decoded once: each is made small at once, and the frame forgotten.

What stays for each picture are its time and, for the network of transitions, 4 kB; beside that, twice a second, which
lines are black and two small grey pictures for motion.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

from mova_engine.curation.black_bars import LitLines, lit_lines
from mova_engine.data.media.container import PREROLL, open_media, video_stream
from mova_engine.data.media.frames import frame_colours, frame_orientation
from mova_engine.data.media.orientation import swaps_sides, turn_upright
from mova_engine.data.media.pictures import check_opening, open_pictures
from mova_engine.data.media.timeline import ROUNDING, known_times
from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import SMALL_AREA
from mova_engine.scores.motion import RATE as MOTION_RATE
from mova_engine.scores.networks.transnet import HEIGHT, WIDTH
from mova_engine.scores.optional_opencv import opencv
from mova_engine.scores.shots import ROWS, ShotFinder, colours_of_one

Pixels = NDArray[np.uint8]
# Seconds between the pictures in which bars are sought, beside key frames and the first pictures of shots, and between
# the pairs of which motion is measured.
EVERY = 0.5
# Of pictures at a constant rate: a longer distance than so many usual ones is a gap, a shorter one than that share a
# picture too many; `timeline` has the same bounds.
GAP, CROWDED = 1.5, 0.25


@dataclass
class SeenPictures:
    """What a unit's pictures show. Times are seconds after the unit's start.

    size: height and width of upright pictures with square pixels; stored, orientation, pixel_aspect: as the file has
    them. bars: the lit lines of pictures that were looked at, by their numbers. pairs: (first picture's number, second
    one's, grey, grey), upright. small: uint8 [27, 48, 3] of each picture, for the network. fault: why it ends early.
    """

    origin: Fraction
    fps: float
    codec: str
    stored: tuple[int, int]
    orientation: int
    pixel_aspect: float
    finder: ShotFinder
    times: list[Fraction] = field(default_factory=list)
    alone: list[int] = field(default_factory=list)
    bars: list[tuple[int, LitLines]] = field(default_factory=list)
    pairs: list[tuple[int, int, Pixels, Pixels]] = field(default_factory=list)
    small: list[Pixels] = field(default_factory=list)
    fault: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright pictures with square pixels."""
        height, width = self.stored[0], max(1, round(self.stored[1] * self.pixel_aspect))
        return (width, height) if swaps_sides(self.orientation) else (height, width)

    @property
    def usual(self) -> float:
        """The median distance of two pictures in seconds; by the stated rate where there is one picture only."""
        distances = np.diff(np.array(self.times, float))
        return float(np.median(distances)) if len(distances) else 1 / self.fps

    @property
    def is_constant(self) -> bool:
        """Whether nine of ten distances of pictures are equal."""
        distances, usual = np.diff(np.array(self.times, float)), self.usual
        return (
            bool(np.mean(np.abs(distances - usual) <= usual / 10 + float(ROUNDING)) >= 0.9) if len(distances) else True
        )

    @property
    def end(self) -> float:
        """When the last picture leaves the display."""
        return float(self.times[-1]) + self.usual

    def pieces(self) -> list[tuple[int, int]]:
        """The pictures [first, end) of the parts in which none is missing, each from a picture that stands alone on."""
        if not self.is_constant:
            return [(0, len(self.times))]
        usual, slack = self.usual, float(ROUNDING)
        distances = np.diff(np.array(self.times, float))
        broken = np.flatnonzero((distances > GAP * usual + slack) | (distances < CROWDED * usual)) + 1
        borders = [0, *broken.tolist(), len(self.times)]
        starts = [0, *(next((k for k in self.alone if k >= at), len(self.times)) for at in borders[1:-1])]
        return [(start, end) for start, end in zip(starts, borders[1:], strict=True) if start < end]


def see_pictures(path: str | Path, start: Fraction, seconds: Fraction | None, *, small: bool) -> SeenPictures:
    """Decode the pictures of [start, start + seconds) after the first one; None: to the file's end. small: keep small
    ones for the network.

    Damage ends the unit. Raises MovaError where no clip of the file could be read, and without OpenCV.
    """
    # What training checks before it reads a clip that does not begin with the file.
    check_opening(path)
    with open_media(path) as container:
        reader, origin, first = open_pictures(container, path)
        stream = video_stream(container, path)
        codec = stream.codec_context.name
        frame_colours(first, path, codec)
        fps = float(stream.average_rate or 0)
        seen = SeenPictures(
            origin=origin,
            fps=fps or 24.0,
            codec=codec,
            stored=(first.height, first.width),
            orientation=frame_orientation(first, path, codec),
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            finder=ShotFinder(fps or 24.0),
        )
        begin = origin + start
        frames = known_times(reader.frames(begin, search=start > PREROLL), container, stream, path)
        eye = _Eye(seen, small)
        try:
            for time, frame in _within(frames, begin, seconds):
                if (frame.height, frame.width) != seen.stored:
                    seen.fault = f"its pictures change their size after {float(start + time):.3f} s"
                    break
                eye.see(time, frame)
        except (MovaError, av.FFmpegError) as error:
            if not seen.times:
                raise
            seen.fault = str(error).removeprefix(f"{path}: ")
        if reader.restart is not None:
            seen.fault = f"its clock restarts {float(reader.restart - origin):.3f} s after its first picture"
    return seen


def _within(
    frames: Iterator[tuple[Fraction, av.VideoFrame]], begin: Fraction, seconds: Fraction | None
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    for time, frame in frames:
        # Starts are whole microseconds: a picture may come a part of one before.
        at = time - begin
        if seconds is not None and at >= seconds:
            return
        if at >= -Fraction(1, 1_000_000):
            yield max(at, Fraction(0)), frame


class _Eye:
    """Looks at one picture after the other. Of each kind of picture one scaler serves all: it keeps its tables."""

    def __init__(self, seen: SeenPictures, small: bool) -> None:
        self._seen, self._small = seen, small
        self._rows = self._scaler(ROWS, round(ROWS * seen.stored[1] / seen.stored[0]), "rgb24")
        height, width = seen.size
        scale = (SMALL_AREA / (height * width)) ** 0.5
        sides = [max(16, 16 * round(side * scale / 16)) for side in (height, width)]
        rows, columns = reversed(sides) if swaps_sides(seen.orientation) else sides
        self._motion = self._scaler(rows, columns, "gray")
        self._whole = self._scaler(*seen.stored, "gray")
        self._next = 0.0
        self._open: tuple[int, Pixels] | None = None

    @staticmethod
    def _scaler(height: int, width: int, form: str) -> Callable[[av.VideoFrame], Pixels]:
        scaler = VideoReformatter()

        def scaled(frame: av.VideoFrame) -> Any:
            made = scaler.reformat(
                frame,
                width=max(1, width),
                height=height,
                format=form,
                interpolation="AREA",
                dst_color_range=ColorRange.JPEG,
                threads=1,
            )
            return made.to_ndarray()

        return scaled

    def see(self, time: Fraction, frame: av.VideoFrame) -> None:
        seen, at = self._seen, float(time)
        number = len(seen.times)
        seen.times.append(time)
        picture = self._rows(frame)
        opens = seen.finder.add(colours_of_one(picture))
        if self._small:
            cv2, upright = opencv("Finding shots"), np.ascontiguousarray(turn_upright(picture, seen.orientation))
            seen.small.append(np.asarray(cv2.resize(upright, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8))
        if frame.key_frame:
            seen.alone.append(number)
        due = at >= self._next
        if frame.key_frame or due or opens:
            seen.bars.append((number, lit_lines(self._whole(frame))))
        self._look_at_motion(number, at, frame, due)
        if due:
            self._next = EVERY * (at // EVERY + 1)

    def _look_at_motion(self, number: int, at: float, frame: av.VideoFrame, due: bool) -> None:
        if self._open is not None:
            first, before = self._open
            if at - float(self._seen.times[first]) >= 1 / MOTION_RATE - 1e-3:
                self._seen.pairs.append((first, number, before, self._grey(frame)))
                self._open = None
        elif due:
            self._open = number, self._grey(frame)

    def _grey(self, frame: av.VideoFrame) -> Pixels:
        return np.ascontiguousarray(turn_upright(self._motion(frame), self._seen.orientation))


def transition_times(seen: SeenPictures, transitions: list[tuple[int, int]]) -> list[tuple[float, float]]:
    """Transitions as times: of pictures [first, end), from the first until the end one begins; equal for a hard cut."""
    times = [*map(float, seen.times), seen.end]
    return [(times[first], times[end]) for first, end in transitions]
