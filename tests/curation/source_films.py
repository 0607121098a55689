"""Films whose truth is known, as raw material of curation: cuts, dissolves, fades, black bars, speech, silence, flashes
with clicks, late sound, turned pictures, variable rates.

Pictures are drawn from noise; speech is the recorded voice of tests/data/media/talking_real_speech.mp4. `python -m
curation.source_films FOLDER`, in tests/, writes `SOURCE_SET` there and prints its truth.
"""

import json
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from scores.drawn_films import scene

TALKING = Path(__file__).parents[1] / "data" / "media" / "talking_real_speech.mp4"
RATE = 48000
# Seconds of the recorded voice, from pause to pause.
PHRASES = ((0.72, 2.81), (2.88, 5.30), (5.36, 7.36))
# Units of time in the files: divides the pictures of 24, 25 and 30 frames a second.
CLOCK = Fraction(1, 12_000)
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
# The display matrix (a, b, c, d of ISO/IEC 14496-12) by degrees to the left; 16.16 fixed point.
_TURNS = {90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}


@dataclass(frozen=True)
class Scene:
    """Seconds of one texture. joint: how it follows the one before. bars: black lines at (left, top, right, bottom) in
    pixels. speed: heights of the picture a second. light: its levels are multiplied by this.
    """

    seconds: float
    joint: str = "cut"  # "dissolve" and "fade" take JOINT_SECONDS
    bars: tuple[int, int, int, int] = (0, 0, 0, 0)
    speed: float = 0.05
    light: float = 1.0


JOINT_SECONDS = 0.75


@dataclass(frozen=True)
class Film:
    """What `write_film` draws. speech: (start, phrase) of PHRASES. clicks: times of flashes in the picture's corner;
    the sound has a click `sound_offset` seconds after each. sound: "noise", "hum", "silence" under the speech, or
    "none". sound_start: seconds after the first picture at which the track begins. turn: degrees to the left that
    players turn the stored pictures. steps: of a variable rate, cycle of 60ths of a second that pictures stay.
    """

    scenes: tuple[Scene, ...]
    speech: tuple[tuple[float, int], ...] = ()
    clicks: tuple[float, ...] = ()
    sound: str = "noise"
    sound_offset: float = 0.0
    sound_start: float = 0.0
    channels: int = 1
    fps: int = 24
    size: tuple[int, int] = (144, 256)
    turn: int = 0
    steps: tuple[int, ...] = ()
    seed: int = 0
    gop: int = 48
    crf: int = 20


@dataclass(frozen=True)
class FilmTruth:
    """What a film holds, in seconds from its first picture. cuts: first times of new shots; the middle of dissolves and
    fades. joints: their [start, end), equal for hard cuts; kinds: "cut", "dissolve" or "fade". speech: [start, end).
    crops: of each shot x, y, width, height without bars, in upright pictures. clicks: (picture, sound).
    """

    path: str
    seconds: float
    size: tuple[int, int]
    cuts: list[float]
    joints: list[tuple[float, float]]
    kinds: list[str]
    speech: list[tuple[float, float]]
    crops: list[tuple[int, int, int, int]]
    clicks: list[tuple[float, float]]
    times: list[float] = field(repr=False)


def write_film(path: Path, film: Film) -> FilmTruth:
    """Write the film, H.264 and AAC, and return what it holds."""
    times = _times(film)
    height, width = film.size
    with av.open(str(path), "w") as container:
        options = {"crf": str(film.crf), "g": str(film.gop), "preset": "veryfast", "x264-params": "asm=avx2"}
        video = container.add_stream("libx264", rate=film.fps, options=options)
        video.width, video.height, video.pix_fmt, video.codec_context.thread_count = width, height, "yuv420p", 1
        video.time_base = video.codec_context.time_base = CLOCK
        sound = None if film.sound == "none" else _sound(film, float(times[-1]))
        if sound is not None:
            audio = container.add_stream("aac", rate=RATE, layout=_LAYOUTS[film.channels], bit_rate=128_000)
        for (time, end), picture in zip(pairwise(times), _pictures(film, times[:-1]), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base, frame.duration = int(time / CLOCK), CLOCK, int((end - time) / CLOCK)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            begin = round(film.sound_start * RATE)
            for position in range(begin, sound.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sound[:, position : position + 1024]), "fltp", _LAYOUTS[film.channels]
                )
                frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), position
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    if film.turn:
        _turn(path, film.turn)
    return _truth(path, film, times)


def _times(film: Film) -> list[Fraction]:
    """When each picture comes, and when the last one leaves."""
    seconds = sum((Fraction(each.seconds) for each in film.scenes), Fraction(0))
    if not film.steps:
        return [Fraction(k, film.fps) for k in range(round(seconds * film.fps) + 1)]
    times, k = [Fraction(0)], 0
    while times[-1] < seconds:
        times.append(times[-1] + Fraction(film.steps[k % len(film.steps)], 60))
        k += 1
    return times


def _shots(film: Film, times: Sequence[Fraction]) -> list[tuple[int, int]]:
    """The pictures [first, end) of each scene, joints divided in their middle."""
    ends = np.cumsum([each.seconds for each in film.scenes])
    at = [0, *(int(np.searchsorted([float(time) for time in times], end - 1e-6)) for end in ends[:-1]), len(times) - 1]
    return list(pairwise(at))


def _joint(film: Film, times: Sequence[Fraction], scene_number: int, first: int) -> tuple[int, int]:
    """The pictures [first, end) in which a scene joins the one before."""
    if film.scenes[scene_number].joint == "cut":
        return first, first
    half = round(JOINT_SECONDS * film.fps / 2)
    return first - half, first + half


def _pictures(film: Film, times: Sequence[Fraction]) -> Iterator[np.ndarray]:
    shots = _shots(film, [*times, times[-1]])
    joints = [_joint(film, times, n, first) for n, (first, _) in enumerate(shots)]
    drawn: dict[int, np.ndarray] = {}
    flashes = {int(np.argmin([abs(float(time) - click) for time in times])) for click in film.clicks}

    def picture(n: int, i: int) -> np.ndarray:
        first = joints[n][0]
        if n not in drawn:
            last = joints[n + 1][1] if n + 1 < len(shots) else len(times)
            each = film.scenes[n]
            found = scene(1000 * film.seed + n, (last - first) / film.fps, film.fps, each.speed, film.size)
            left, top, right, bottom = each.bars
            found = (found * each.light).astype(np.uint8)
            found[:, :top], found[:, film.size[0] - bottom :] = 0, 0
            found[:, :, :left], found[:, :, film.size[1] - right :] = 0, 0
            drawn[n] = found
        return drawn[n][i - first]

    for i in range(len(times)):
        n = next(k for k, (first, end) in enumerate(shots) if first <= i < end)
        drawn = {k: kept for k, kept in drawn.items() if k >= n - 1}
        made = picture(n, i)
        for later in (n, n + 1):
            if 0 < later < len(shots) and joints[later][0] <= i < joints[later][1]:
                share = (i - joints[later][0] + 1) / (joints[later][1] - joints[later][0] + 1)
                made = _mixed(film.scenes[later].joint, share, picture(later - 1, i), picture(later, i))
        if i in flashes:
            made = made.copy()
            made[film.size[0] // 2 :, : film.size[1] // 4] = 255
        yield made


def _mixed(kind: str, share: float, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    if kind == "dissolve":
        return (before * (1 - share) + after * share).round().astype(np.uint8)
    return (before * (1 - 2 * share) if share < 0.5 else after * (2 * share - 1)).astype(np.uint8)


@lru_cache(1)
def _voice() -> np.ndarray:
    with av.open(str(TALKING)) as container:
        parts = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(parts)


def _sound(film: Film, seconds: float) -> np.ndarray:
    """float32 [channels, n], from the first picture on."""
    count = round(seconds * RATE)
    t, drawn = np.arange(count) / RATE, np.random.default_rng(film.seed)
    mono = {
        "silence": lambda: np.zeros(count),
        "noise": lambda: 0.003 * drawn.standard_normal(count),
        "hum": lambda: 0.05 * sum(np.sin(2 * np.pi * pitch * t) for pitch in (110, 165, 220)),
    }[film.sound]()
    for start, phrase in film.speech:
        first, last = (round(each * RATE) for each in PHRASES[phrase])
        at = round(start * RATE)
        mono[at : at + last - first] += _voice()[first:last][: count - at]
    for click in film.clicks:
        mono += 0.8 * np.exp(-(((t - click - film.sound_offset) / 0.0008) ** 2))
    return np.tile(np.clip(mono, -1, 1), (film.channels, 1)).astype(np.float32)


def _turn(path: Path, degrees: int) -> None:
    """State in an mp4 file that its pictures are shown turned to the left."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (part << 16 for part in _TURNS[degrees])
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def _truth(path: Path, film: Film, times: Sequence[Fraction]) -> FilmTruth:
    shots = _shots(film, times)
    joints = [_joint(film, times, n, first) for n, (first, _) in enumerate(shots)][1:]
    height, width = film.size
    crops = []
    for each in film.scenes:
        left, top, right, bottom = each.bars
        for _ in range(film.turn // 90):  # a quarter turn to the left
            left, top, right, bottom = top, right, bottom, left
        shown = (width, height) if film.turn % 180 else (height, width)
        crops.append((left, top, shown[1] - left - right, shown[0] - top - bottom))
    lengths = [PHRASES[phrase][1] - PHRASES[phrase][0] for _, phrase in film.speech]
    return FilmTruth(
        path=str(path),
        seconds=float(times[-1]),
        size=(width, height) if film.turn % 180 else (height, width),
        cuts=[float(times[(first + end) // 2]) for first, end in joints],
        kinds=[each.joint for each in film.scenes[1:]],
        joints=[(float(times[first]), float(times[end])) for first, end in joints],
        speech=[(start, start + length) for (start, _), length in zip(film.speech, lengths, strict=True)],
        crops=crops,
        clicks=[(click, click + film.sound_offset) for click in film.clicks],
        times=[float(time) for time in times[:-1]],
    )


def talk(start: float, end: float, pause: float = 0.6) -> tuple[tuple[float, int], ...]:
    """Phrases one after the other from `start` to `end`, with pauses between them."""
    found, at, n = [], start, 0
    while True:
        length = PHRASES[n % 3][1] - PHRASES[n % 3][0]
        if at + length > end:
            return tuple(found)
        found.append((round(at, 4), n % 3))
        at += length + pause
        n += 1


WIDE, PILLARS = (0, 18, 0, 18), (56, 0, 56, 0)
# A film for each thing that may go wrong.
SOURCE_SET: dict[str, Film] = {
    "cuts.mp4": Film(
        tuple(
            Scene(1.0 + n % 4 / 2, "dissolve" if n % 6 == 4 else "fade" if n % 12 == 7 else "cut", speed=n % 5 / 8)
            for n in range(30)
        ),
        sound="hum",
        seed=12,
    ),
    "talk.mp4": Film((Scene(20), Scene(5), Scene(9.5, "dissolve"), Scene(6, "fade")), talk(2, 33), seed=1),
    "letterbox.mp4": Film((Scene(11, bars=WIDE), Scene(12, bars=WIDE, light=0.25)), talk(1, 20), seed=2),
    "pillarbox.mp4": Film((Scene(10, bars=PILLARS), Scene(10)), sound="hum", seed=3),
    "offset.mp4": Film((Scene(18),), clicks=(2.5, 6, 11, 15.5), sound_offset=0.12, seed=4),
    "silent.mp4": Film((Scene(9), Scene(9)), sound="silence", seed=5),
    "no-sound.mp4": Film((Scene(17.5),), sound="none", seed=6),
    "late-sound.mp4": Film((Scene(18),), talk(4, 17), sound_start=3.0, seed=7),
    "turned.mp4": Film((Scene(10, bars=WIDE), Scene(8.5, bars=WIDE)), talk(0.5, 17), turn=90, seed=8),
    "variable.mp4": Film((Scene(9), Scene(9)), talk(1, 16), steps=(2, 2, 3, 1, 5), fps=60, seed=9),
    "surround.mkv": Film((Scene(17),), talk(1, 16), channels=6, fps=25, seed=10),
    "short.mp4": Film((Scene(4),), seed=11),
}


def main() -> None:
    """Write the set into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, film in SOURCE_SET.items():
        truth = asdict(write_film(folder / name, film))
        del truth["times"]
        sys.stdout.write(json.dumps(truth) + "\n")


if __name__ == "__main__":
    main()
