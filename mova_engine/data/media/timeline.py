"""When pictures are on display: the true times where a container's are not, the last one's end, pictures missing."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Stream
from av.video.frame import PictureType, VideoFrame

from mova_engine.errors import MovaError

# Frames by which to tell whether a rate is constant.
ENOUGH = 60
# Seconds by which the distance of two stamps may be wrong: containers round to milliseconds.
ROUNDING = Fraction(2, 1000)
# Seconds for which no picture stays: a day.
LONGEST = Fraction(86_400)


class WrongTimesError(MovaError):
    """A stream's timestamps contradict each other."""


def known_times(
    frames: Iterator[tuple[Fraction, VideoFrame]], container: InputContainer, stream: Stream, path: str | Path
) -> Iterator[tuple[Fraction, VideoFrame]]:
    """The frames with their true times where the container does not give these, or MovaError where they are a guess.

    An AVI with B frames gives times of decoding; where the sound starts against them is a frame or two in doubt.
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
    """Frames of a constant rate, some of which are stamped a period or two off: those get the time that counting gives.

    In program streams a stamp stands where a packet of 2 kB begins and goes to the frame that is next found there,
    now and then to another. Later stamps agree with the count again; where they do not within a second, a frame is
    missing and all times stay, or WrongTimesError is raised where they lie before the count: none can be too many.
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
    """Frames with their times, as they are read, and at last the time at which the last one leaves the display.

    stated: whether the container says of each frame how long it stays. Otherwise that is guessed from a declared rate,
    and the distance of the frames before says more.
    """

    def __init__(self, frames: Iterator[tuple[Fraction, VideoFrame]], stream: Stream, stated: bool) -> None:
        self._frames, self._stream, self._stated = frames, stream, stated
        self._times: list[Fraction] = []
        self._alone: list[Fraction] = []  # of pictures that need no others
        self._stays = Fraction(0)

    def __iter__(self) -> Iterator[tuple[Fraction, VideoFrame | None]]:
        for time, frame in self._frames:
            self._times.append(time)
            if frame.key_frame:
                self._alone.append(time)
            self._stays = frame.duration * frame.time_base
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
        """From when to when, between `begin` and `end`, pictures are missing: from a file of constant
        frame rate, or for longer than any stays.

        Also before `begin`, from the last picture on that needs no others: those that follow need what is missing.
        Also between the file's first two pictures, at `opening`: a wrong time of the first would move everything.
        The rate is constant where nine of ten distances are the same, or the file's mean and base rates and the usual
        distance agree. That a container says of a picture that it stays so long proves nothing: whoever writes a file
        from which packets are missing lets it say so.
        """
        if self._widest(opening) > self._typical() * Fraction(3, 2):
            # There may be few distances to tell by what is usual.
            self._see_while(lambda: len(self._times) <= ENOUGH)
        typical = self._typical()
        if not typical:
            return None
        begin = max((time for time in self._alone if time <= begin), default=begin)
        within = [(a, b) for a, b in pairwise(self._times) if a < end and b > begin]
        if opening[1] is not None:
            within.append(opening)
        longest = typical * Fraction(3, 2) + ROUNDING if self._is_constant() else LONGEST
        return next(((a, b) for a, b in within if b - a > longest), None)

    def crowded(self, end: Fraction) -> Fraction | None:
        """When, up to `end`, a file of constant rate shows two pictures all but at once."""
        least = self._typical() / 4 if self._is_constant() else 0
        return next((a for a, b in pairwise(self._times) if b - a < least and a < end), None)

    def _is_constant(self) -> bool:
        """Whether the frame rate is, see `hole`."""
        typical, gaps = self._typical(), [b - a for a, b in pairwise(self._times)]
        even = sum(abs(gap - typical) <= typical / 10 + ROUNDING for gap in gaps) >= len(gaps) * Fraction(9, 10)
        rates = (self._stream.average_rate, self._stream.base_rate)
        return even or all(rate is not None and abs(rate * typical - 1) < Fraction(1, 20) for rate in rates)

    def gap_around(self, time: Fraction, begin: Fraction, end: Fraction) -> tuple[Fraction, Fraction] | None:
        """From when to when, between `begin` and `end`, a picture stays that is on display at `time`."""
        return next(((a, b) for a, b in pairwise(self._times) if a < time < b and a < end and b > begin), None)

    def is_whole(self, time: Fraction) -> bool:
        """Whether a time is a multiple of the usual distance of two frames."""
        typical = self._typical()
        return abs(time - round(time / typical) * typical) <= typical / 10 + ROUNDING

    def see_until(self, end: Fraction) -> None:
        """Read on to a time."""
        self._see_while(lambda: self._times[-1] < end)

    def _see_while(self, wanted: Callable[[], bool]) -> None:
        """Read on; damage that is met is none of the clip's."""
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
        """The usual distance of two frames."""
        distances = sorted(b - a for a, b in pairwise(self._times))
        return distances[(len(distances) - 1) // 2] if distances else Fraction(0)

    def _widest(self, opening: tuple[Fraction, Fraction | None]) -> Fraction:
        first, second = opening
        widest = max((b - a for a, b in pairwise(self._times)), default=Fraction(0))
        return max(widest, second - first) if second is not None else widest
