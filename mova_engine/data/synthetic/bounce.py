"""The embedded data set: mp4 files of a bouncing ball that clicks, in which sound and picture agree only by timing.

A ball rests at the top, is released after a hidden random delay, falls, and bounces at the tempo that the caption
names. Each bounce makes a click, whose pitch depends on the ball's colour. Caption and first frame determine colour,
tempo and position but not the delay: a model can place the click on the bounce only if picture and sound exchange
information.

    mova nano clips OUT --clips 768 --seed 0 --split train

writes `OUT/*.mp4` and `OUT/metadata.jsonl` (video_path, caption, and the truth: colour, tempo, delay, column, bounces).
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.data.media.write import encode_mp4
from mova_engine.data.metadata import FILES
from mova_engine.errors import MovaError
from mova_engine.files.written import Written

WAY_OUT = "give another folder"

FRAMES, SIZE, FPS, SAMPLE_RATE = 33, 48, 24.0, 48000
DURATION = FRAMES / FPS

# Colour name -> RGB of the ball, Hz of its click. All carriers are multiples of 50 Hz, so that with the phase locked to
# absolute time a click's waveform repeats in every 20 ms audio latent, whenever it starts.
COLOURS: dict[str, tuple[tuple[int, int, int], float]] = {
    "red": ((255, 70, 60), 500.0),
    "yellow": ((245, 215, 40), 850.0),
    "green": ((60, 225, 80), 1200.0),
    "blue": ((70, 140, 255), 1550.0),
    "purple": ((215, 90, 250), 1900.0),
    "white": ((250, 250, 250), 2250.0),
}
# Tempo name -> seconds from bounce to bounce.
TEMPI: dict[str, float] = {"frantic": 0.5, "quick": 0.6, "moderate": 0.7, "slow": 0.8, "lazy": 0.9}

# Every colour and every tempo is seen in training; these pairs of them are not.
HELD_OUT: tuple[tuple[str, str], ...] = tuple((c, list(TEMPI)[i % len(TEMPI)]) for i, c in enumerate(COLOURS))
TRAINED: tuple[tuple[str, str], ...] = tuple((c, t) for c in COLOURS for t in TEMPI if (c, t) not in HELD_OUT)
SPLITS = {"train": TRAINED, "heldout": HELD_OUT}

LATEST_FIRST_BOUNCE = 1.1  # seconds: every clip shows its first bounce and the rise after it
CLICK_DECAY, CLICK_ATTACK, CLICK_LEVEL = 0.035, 0.001, 0.6  # seconds, seconds, of full scale
WALL, FLOOR = (28, 30, 34), (92, 76, 70)
FLOOR_TOP = 42  # row
RADIUS = 5.0  # pixels, as are all below
REST_HEIGHT = 8.0  # row of the ball's centre at rest
# Middles of the embedded codec's 8-pixel blocks: between two of them it would lose half as much again of the ball.
COLUMNS = (12.0, 20.0, 28.0, 36.0)


@dataclass(frozen=True)
class Scene:
    """The size and length of a clip: at least 48 pixels wide and high, so that the ball has room, and 33 frames long,
    so that it bounces. The floor is as thick in all, and the ball rests as far from the top.
    """

    width: int = SIZE
    height: int = SIZE
    frames: int = FRAMES

    def __post_init__(self) -> None:
        if self.width < SIZE or self.height < SIZE or self.frames < FRAMES:
            raise MovaError(
                f"bouncing balls need pictures of {SIZE}x{SIZE} and {FRAMES} frames or more, got "
                f"{self.width}x{self.height}x{self.frames}"
            )

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / FPS

    @property
    def floor_top(self) -> int:
        """Row."""
        return self.height - (SIZE - FLOOR_TOP)

    @property
    def columns(self) -> tuple[float, ...]:
        """Where the ball may be."""
        return tuple(float(x) for x in np.arange(COLUMNS[0], self.width - COLUMNS[0] + 1, COLUMNS[1] - COLUMNS[0]))


SCENE = Scene()


@dataclass(frozen=True)
class Bounce:
    """The parameters of one clip. delay: seconds at rest before the release; negative: so long before the clip begins
    the ball was released. column: x of the ball's centre, pixels.
    """

    colour: str
    tempo: str
    delay: float
    column: float
    scene: Scene = SCENE

    @property
    def caption(self) -> str:
        return f"a {self.colour} ball bouncing on the floor at a {self.tempo} tempo"

    @property
    def period(self) -> float:
        """Seconds from bounce to bounce; the first fall takes half of it."""
        return TEMPI[self.tempo]

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds at which the ball touches the floor, within the clip."""
        return tuple(time for time in self.contacts if time >= 0)

    @property
    def contacts(self) -> tuple[float, ...]:
        """The same, and those before the clip, whose clicks may reach into it."""
        first = self.delay + self.period / 2
        return tuple(np.arange(first, self.scene.duration, self.period).tolist())

    def height(self, t: np.ndarray) -> np.ndarray:
        """Fraction (1 at rest, 0 on the floor) of the ball's height at times `t` in seconds.

        Free fall and loss-free bounces: the parabola 4 u (1 - u) in the phase u of the period; u = 1/2 is the top.
        """
        phase = np.mod(np.maximum(t - self.delay, 0.0) / self.period + 0.5, 1.0)
        return 4 * phase * (1 - phase)


def draw(rng: np.random.Generator, colour: str, tempo: str, midway: float = 0.0, scene: Scene = SCENE) -> Bounce:
    """A clip of the given colour and tempo; delay ~ U(0, min(T, 1.1 - T/2)) seconds, T the period; a random column.

    midway: the probability that it begins in the middle of the motion instead, delay ~ U(-T, 0).
    """
    period = TEMPI[tempo]
    delay = rng.uniform(0, min(period, LATEST_FIRST_BOUNCE - period / 2))
    clip = Bounce(colour, tempo, float(delay), float(rng.choice(scene.columns)), scene)
    if midway and rng.uniform() < midway:
        return replace(clip, delay=-float(rng.uniform(0, period)))
    return clip


def render_video(clip: Bounce, scale: int = 1) -> np.ndarray:
    """The picture, uint8 [f, h, w, 3]: frame k shows the instant k / 24 s, the ball with a two-pixel soft edge.

    scale: how many times larger all is than the clip's scene says.
    """
    return draw_ball(clip.height(np.arange(clip.scene.frames) / FPS), clip.colour, clip.column, clip.scene, scale)


def draw_ball(heights: np.ndarray, colour: str, column: float, size: Scene = SCENE, scale: int = 1) -> np.ndarray:
    """Pictures, uint8 [f, h * scale, w * scale, 3], of a ball at `heights` [f] (see `Bounce.height`).

    scale: how many times larger all is than `size` says.
    """
    floor = size.floor_top
    rows, columns = (np.mgrid[0 : size.height * scale, 0 : size.width * scale] + 0.5) / scale
    scene = np.where((rows >= floor)[..., None], np.array(FLOOR, float), np.array(WALL, float))
    centres = (floor - RADIUS) + heights * (REST_HEIGHT - (floor - RADIUS))
    distance = np.hypot(rows - centres[:, None, None], columns - column)
    cover = np.clip((RADIUS + 1 - distance) / 2, 0, 1)[..., None]
    ball = np.array(COLOURS[colour][0], float)
    return np.round(scene + cover * (ball - scene)).astype(np.uint8)


def render_audio(clip: Bounce) -> np.ndarray:
    """The sound, float32 [n] at 48 kHz: at each bounce a sinusoid of the colour's carrier, decaying in 35 ms."""
    return click_sound(np.arange(round(clip.scene.duration * SAMPLE_RATE)), clip.contacts, COLOURS[clip.colour][1])


def click_sound(samples: np.ndarray, times: Sequence[float], carrier: float) -> np.ndarray:
    """The samples of these numbers [n], float32 at 48 kHz, of a sound with a click of `carrier` Hz at `times` s."""
    t = samples / SAMPLE_RATE
    envelope = np.zeros_like(t)
    for time in times:
        since = np.maximum(t - time, 0.0)
        envelope += np.minimum(since / CLICK_ATTACK, 1.0) * np.exp(-since / CLICK_DECAY)
    return (CLICK_LEVEL * envelope * np.sin(2 * np.pi * carrier * t)).astype(np.float32)


def draw_clips(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw `count` clips in memory: frames uint8 [count, f, h, w, 3], sound float32 [count, n] at 48 kHz, captions.

    Clip i depends on (seed, i) alone; the pairs of colour and tempo that nano trains on take turns.
    """
    clips = [draw(np.random.default_rng((seed, i)), *TRAINED[i % len(TRAINED)]) for i in range(count)]
    frames, sound = np.stack([render_video(clip) for clip in clips]), np.stack([render_audio(clip) for clip in clips])
    return frames, sound, [clip.caption for clip in clips]


def generate(
    folder: str | Path,
    clips: int,
    seed: int = 0,
    split: str = "train",
    progress: Callable[[int], None] = lambda done: None,
    midway: float = 0.0,
    scenes: Sequence[Scene] = (SCENE,),
    scale: int = 1,
) -> list[dict[str, Any]]:
    """Write `clips` clips of a split and their metadata.jsonl into `folder`; return the metadata rows.

    Colour-tempo pairs alternate, so that a multiple of their number (24 train, 6 heldout) has each pair equally often.
    Clip i depends only on (seed, split, i) and midway, the share of clips that begin in the middle of the motion (see
    `draw`). scenes: sizes and lengths, in turn after each round of the pairs. scale: how many times larger pictures
    are, with all that they show. metadata.jsonl is written last: a folder that has one is complete.
    progress: called with the number of clips written so far.
    Raises MovaError for an unknown split, a count below 1, a folder that already holds clips, and for files under the
    clips' names that were not written here.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise MovaError(f"unknown split '{split}'. Known: {', '.join(SPLITS)}")
    if clips < 1:
        raise MovaError(f"clips must be at least 1, got {clips}")
    names = [f"{split}_{index:05d}.mp4" for index in range(clips)]
    for listing in FILES:
        if os.path.lexists(folder / listing):
            raise MovaError(f"{folder} already holds clips ({listing}); give another folder")
    record = Written(folder, "bounce")
    record.check(names, WAY_OUT)

    def make(index: int) -> dict[str, Any]:
        rng = np.random.default_rng((seed, list(SPLITS).index(split), index))
        turn, pair = divmod(index, len(SPLITS[split]))
        clip = draw(rng, *SPLITS[split][pair], midway, scenes[turn % len(scenes)])
        name = names[index]
        # Lossless pictures: a lossy encoder spends bits on a frame by what follows, and the first would tell the delay.
        data = encode_mp4(name, render_video(clip, scale), render_audio(clip), fps=FPS, sample_rate=SAMPLE_RATE, crf=0)
        record.write(name, data, WAY_OUT, sync=False)
        facts = {key: value for key, value in asdict(clip).items() if key != "scene"}
        return {"video_path": name, "caption": clip.caption, **facts, "bounces": clip.times}

    rows: list[dict[str, Any]] = []
    # Threads: nearly all the time goes to the encoders, which release Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row in pool.map(make, range(clips)):
            rows.append(row)
            progress(len(rows))
    record.write(FILES[0], "".join(json.dumps(row) + "\n" for row in rows).encode(), WAY_OUT)
    return rows
