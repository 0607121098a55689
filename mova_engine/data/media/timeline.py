"""The times at which pictures are on display: corrects wrong times, finds the last picture's end and missing
pictures.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Stream
from av.video.frame import PictureType, VideoFrame

from mova_engine.errors import MovaError

# Number of frames that suffice to tell whether the frame rate is constant.
ENOUGH = 60
# Error of the distance of two stamps in seconds: containers round to milliseconds.
ROUNDING = Fraction(2, 1000)
# Number of pictures without which nothing is a grid.
LEAST_GRID = 12
# No picture stays on display for so many seconds (a day).
LONGEST = Fraction(86_400)


class WrongTimesError(MovaError):
    """A stream's timestamps contradict each other."""


def known_times(
    frames: Iterator[tuple[Fraction, VideoFrame]], container: InputContainer, stream: Stream, path: str | Path
) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Yield the frames with corrected times. Raises MovaError if the container does not determine them.

    An AVI with B frames has decoding times only, so that the offset of the sound is uncertain by a frame or two.
    """
    if container.format.name == "mpeg" and stream.average_rate:
        frames = _counted(frames, 1 / stream.average_rate, path)
    guessed = container.format.name == "avi" and container.streams.audio
    for time, frame in frames:
        if guessed and frame.pict_type == PictureType.B:
            raise MovaError(f"{path}: an AVI with B frames does not say when they are shown; convert it to mp4 or mkv")
        yield time, frame


def _counted(
    frames: Iterator[tuple[Fraction, VideoFrame]], period: Fraction, path: str | Path
) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Correct single wrong stamps in a stream of constant frame rate, by counting frames.

    In program streams a stamp belongs to the first frame that begins in a packet of 2 kB; sometimes it is given to
    another frame, and is then a period or two off. Such frames get the counted time if later stamps agree with the
    count again within a second. If not, frames are missing and all stamps are kept; if the later stamps are before the
    count, WrongTimesError is raised, because there cannot be too many frames.
    """
    last, odd = None, []
    for time, frame in frames:
        off = 0 if last is None else abs(time - last - period)
        if last is None or not (odd or period / 10 < off < period * Fraction(5, 2)):
            yield time, frame
            last = time
            continue
        odd.append((time, frame))
        agrees = abs(time - last - len(odd) * period) <= period / 10
        if not agrees and len(odd) * period > 1 and time < last + (len(odd) - Fraction(1, 4)) * period:
            back = float(last + len(odd) * period - time)
            raise WrongTimesError(f"{path}: damaged video: its stamps go back by {back:.3f} s against its pictures")
        if agrees or len(odd) * period > 1:
            yield from ((last + (i + 1) * period, x) for i, (_, x) in enumerate(odd)) if agrees else odd
            last, odd = time, []
    yield from odd


class Timeline:
    """Iterates over (time, frame), and at the end (time, None), the time at which the last frame leaves the display.

    stated: whether the container states each frame's duration. Otherwise the decoder derives it from the declared rate,
    and the typical distance of the frames is used instead.
    """

    def __init__(self, frames: Iterator[tuple[Fraction, VideoFrame]], stream: Stream, stated: bool) -> None:
        self._frames, self._stream, self._stated = frames, stream, stated
        self._times: list[Fraction] = []
        self._alone: list[Fraction] = []  # times of key frames
        self._stays = Fraction(0)

    def __iter__(self) -> Iterator[tuple[Fraction, VideoFrame | None]]:
        for time, frame in self._frames:
            self._times.append(time)
            if frame.key_frame:
                self._alone.append(time)
            self._stays = frame.duration * (frame.time_base or 0)
            yield time, frame
        if not self._times:
            yield Fraction(0), None
            return
        stays = self._stays
        if len(self._times) > 1 and not (self._stated and stays):
            stays = self._typical()
        elif not stays and self._stream.average_rate:
            stays = 1 / self._stream.average_rate
        self._times.append(self._times[-1] + stays)
        yield self._times[-1], None

    def hole(
        self, begin: Fraction, end: Fraction, opening: tuple[Fraction, Fraction | None]
    ) -> tuple[Fraction, Fraction] | None:
        """Return the first interval (start, end) in seconds between `begin` and `end` in which pictures are missing;
        None if there is none. A gap counts in a file of constant frame rate, or if it is longer than LONGEST.

        Gaps between the last key frame before `begin` and `begin` count too, because later pictures depend on the
        missing ones. So does a gap between the file's first two pictures (`opening`): a wrong first time would shift
        everything. The rate is constant if nine of ten distances are equal, or if the file's mean rate, its base rate
        and the typical distance agree. A long duration stated by the container is no evidence: software that writes a
        file with missing packets states it as well.
        """
        if self._widest(opening) > self._typical() * Fraction(3, 2):
            # Read more frames: there may be too few distances to know the typical one.
            self._see_while(lambda: len(self._times) <= ENOUGH)
        typical = self._typical()
        if not typical:
            return None
        begin = max((time for time in self._alone if time <= begin), default=begin)
        within = [(a, b) for a, b in pairwise(self._times) if a < end and b > begin]
        first, second = opening
        if second is not None:
            within.append((first, second))
        longest = typical * Fraction(3, 2) + ROUNDING if self._is_constant() else LONGEST
        return next(((a, b) for a, b in within if b - a > longest), None)

    def crowded(self, end: Fraction) -> Fraction | None:
        """The first time up to `end` at which a file of constant rate has two pictures at almost the same time."""
        least = self._typical() / 4 if self._is_constant() else 0
        return next((a for a, b in pairwise(self._times) if b - a < least and a < end), None)

    def off_grid(self, end: Fraction) -> Fraction | None:
        """By how many seconds the first picture is late on the grid of the declared rate on which the later ones up to
        `end` stand; None if it stands on it, or if there is no such grid.
        """
        rate, typical = self._stream.average_rate, self._typical()
        times = [time for time in self._times if time < end]
        if not rate or not typical or len(times) < LEAST_GRID or abs(rate * typical - 1) >= Fraction(1, 20):
            return None

        def from_grid(time: Fraction, start: Fraction) -> Fraction:
            return (time - start) - round((time - start) * rate) / rate

        for share in (Fraction(1, 2), Fraction(3, 4)):
            grid, *others = times[int(len(times) * share) :]
            on_it = sum(abs(from_grid(time, grid)) <= ROUNDING for time in others)
            late = from_grid(times[0], grid)
            if on_it >= len(others) * Fraction(9, 10) and abs(late) > 1 / rate / 10 + ROUNDING:
                return late
        return None

    def _is_constant(self) -> bool:
        """Whether the frame rate is constant, see `hole`."""
        typical, gaps = self._typical(), [b - a for a, b in pairwise(self._times)]
        even = sum(abs(gap - typical) <= typical / 10 + ROUNDING for gap in gaps) >= len(gaps) * Fraction(9, 10)
        rates = (self._stream.average_rate, self._stream.base_rate)
        return even or all(rate is not None and abs(rate * typical - 1) < Fraction(1, 20) for rate in rates)

    def gap_around(self, time: Fraction, begin: Fraction, end: Fraction) -> tuple[Fraction, Fraction] | None:
        """The interval in which the picture on display at `time` is shown, if it overlaps `begin` to `end`."""
        return next(((a, b) for a, b in pairwise(self._times) if a < time < b and a < end and b > begin), None)

    def is_whole(self, time: Fraction) -> bool:
        """Whether a time in seconds is a multiple of the typical distance of two frames."""
        typical = self._typical()
        return abs(time - round(time / typical) * typical) <= typical / 10 + ROUNDING

    def see_until(self, end: Fraction) -> None:
        """Read the times of frames up to `end`."""
        self._see_while(lambda: self._times[-1] < end)

    def _see_while(self, wanted: Callable[[], bool]) -> None:
        """Read the times of frames while `wanted` returns True. Damage is no error here."""
        try:
            for time, _ in self._frames:
                self._times.append(time)
                if not wanted():
                    return
        except WrongTimesError:
            raise
        except (MovaError, av.FFmpegError):
            return

    def _typical(self) -> Fraction:
        """The median distance of two frames, in seconds."""
        distances = sorted(b - a for a, b in pairwise(self._times))
        return distances[(len(distances) - 1) // 2] if distances else Fraction(0)

    def _widest(self, opening: tuple[Fraction, Fraction | None]) -> Fraction:
        first, second = opening
        widest = max((b - a for a, b in pairwise(self._times)), default=Fraction(0))
        return max(widest, second - first) if second is not None else widest
