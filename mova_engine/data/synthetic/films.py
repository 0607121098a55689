"""Raw films of bouncing balls, for trying curation: what is wrong with them was put there, and is known.

A film shows one colour and one tempo, which its caption says, in scenes of 1.5 or 2 seconds; between two of them is a
card of half a second, with a hard cut before and after it. It is letterboxed: black bars above and below, as high in
all of a film. A scene begins with the ball at rest, as the clips of `bounce` do. Two to four scenes in a row share
their sound:

    clean    a click at each bounce
    loose    the same, one or two pictures early or late
    off      three to five pictures early or late
    noisy    clean, under white noise
    silent   none

    mova nano films OUT --films 48 --seed 0

writes `OUT/film_000.mp4` and so on, `metadata.jsonl` with the films' captions, and beside each film its truth,
`film_000.json`: colour, tempo, the rows of its bars, the times of its cuts, and of each scene its place, its bounces
and what its sound is.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mova_engine.data.media.write import encode_mp4
from mova_engine.data.metadata import FILES
from mova_engine.data.synthetic.bounce import (
    COLOURS,
    FPS,
    SAMPLE_RATE,
    SCENE,
    TRAINED,
    WAY_OUT,
    Bounce,
    Scene,
    click_sound,
    draw,
    draw_ball,
)
from mova_engine.errors import MovaError
from mova_engine.files.written import Written

SceneSound = Literal["clean", "loose", "off", "noisy", "silent"]
# How often a run of scenes has which sound.
SHARES: dict[SceneSound, float] = {"clean": 0.5, "loose": 0.14, "off": 0.14, "noisy": 0.14, "silent": 0.08}
RUN = (2, 4)  # how many scenes share it
# Pictures by which the sound of `loose` and `off` scenes is early or late.
LEADS: dict[SceneSound, tuple[int, ...]] = {"loose": (1, 2), "off": (3, 4, 5)}
NOISE = 0.03  # root mean square of `noisy` scenes' noise; full scale is 1
SHORTEST, LONGEST = 30.0, 60.0  # seconds of a film
# All scenes begin at multiples of half a second, which is a whole number of pictures, and of the 20 ms of sound in
# which every click's carrier repeats: a clip that begins with a scene has the phases of a clip of `bounce`.
STEP = round(0.5 * FPS)
SCENE_STEPS, CARD_STEPS = (3, 4), 1
CARD = 235  # shade, of 255
BARS = (8, 12, 16, 24)  # rows
SCALE = 2  # films are twice as large as nano's clips: curation makes them smaller
_SLACK = 0.4  # seconds after which a click is not heard


@dataclass(frozen=True)
class FilmScene:
    """Pictures [first, first + frames) of a film. clip: its ball; None for a card. lead: seconds by which the sound is
    early.
    """

    first: int
    frames: int
    clip: Bounce | None = None
    sound: SceneSound = "silent"
    lead: float = 0.0

    @property
    def start(self) -> float:
        """Seconds."""
        return self.first / FPS

    @property
    def bounces(self) -> tuple[float, ...]:
        """Seconds in the film."""
        return tuple(round(self.start + time, 6) for time in self.clip.times) if self.clip else ()

    @property
    def clicks(self) -> tuple[float, ...]:
        """Seconds in the film."""
        return () if self.sound == "silent" else tuple(round(time - self.lead, 6) for time in self.bounces)


@dataclass(frozen=True)
class BounceFilm:
    """A film. bar: rows above and below the picture, which are black. seed: of its noise."""

    colour: str
    tempo: str
    bar: int
    scenes: tuple[FilmScene, ...]
    seed: tuple[int, ...] = (0,)

    @property
    def caption(self) -> str:
        return Bounce(self.colour, self.tempo, 0.0, 0.0).caption

    @property
    def frames(self) -> int:
        return self.scenes[-1].first + self.scenes[-1].frames

    @property
    def cuts(self) -> tuple[float, ...]:
        """Seconds of the first pictures after hard cuts."""
        return tuple(scene.start for scene in self.scenes[1:])

    def truth(self) -> dict[str, Any]:
        """What the file beside the film says."""
        scenes = [
            {
                "start": scene.start,
                "frames": scene.frames,
                "card": scene.clip is None,
                "column": None if scene.clip is None else scene.clip.column,
                "delay": None if scene.clip is None else scene.clip.delay,
                "bounces": scene.bounces,
                "sound": scene.sound,
                "lead": scene.lead,
            }
            for scene in self.scenes
        ]
        facts = {"colour": self.colour, "tempo": self.tempo, "caption": self.caption, "bar": self.bar}
        return {**facts, "frames": self.frames, "cuts": self.cuts, "scenes": scenes}


def draw_film(seed: int, index: int) -> BounceFilm:
    """Film `index`, which depends on (seed, index) alone; nano's trained pairs of colour and tempo take turns."""
    rng = np.random.default_rng((seed, index))
    colour, tempo = TRAINED[index % len(TRAINED)]
    wanted = rng.uniform(SHORTEST, LONGEST - SCENE_STEPS[-1] * STEP / FPS) * FPS
    scenes: list[FilmScene] = []
    sound, lead, left, first = "clean", 0.0, 0, 0
    while first < wanted:
        if not left:
            sound, lead, left = *_draw_sound(rng), int(rng.integers(RUN[0], RUN[1] + 1))
        left -= 1
        # From scene to scene too little changes for anybody to call it a cut.
        if scenes:
            scenes.append(FilmScene(first, CARD_STEPS * STEP))
            first += CARD_STEPS * STEP
        frames = int(rng.choice(SCENE_STEPS)) * STEP
        clip = draw(rng, colour, tempo, scene=SCENE)
        scenes.append(FilmScene(first, frames, replace(clip, scene=Scene(frames=frames)), sound, lead))
        first += frames
    return BounceFilm(colour, tempo, int(rng.choice(BARS)), tuple(scenes), (seed, index))


def _draw_sound(rng: np.random.Generator) -> tuple[SceneSound, float]:
    """What a run of scenes sounds like, and by how many seconds it is early."""
    names = list(SHARES)
    sound = names[int(rng.choice(len(names), p=list(SHARES.values())))]
    if sound not in LEADS:
        return sound, 0.0
    return sound, float(rng.choice((-1, 1)) * rng.choice(LEADS[sound]) / FPS)


def film_pictures(film: BounceFilm) -> np.ndarray:
    """Its pictures, uint8 [f, 96 + 2 bars, 96, 3]: picture k shows the instant k / 24 s."""
    side = SCENE.height * SCALE
    pictures = np.zeros((film.frames, side + 2 * film.bar, side, 3), np.uint8)
    for scene in film.scenes:
        part = pictures[scene.first : scene.first + scene.frames, film.bar : film.bar + side]
        if scene.clip is None:
            part[:] = CARD
        else:
            heights = scene.clip.height(np.arange(scene.frames) / FPS)
            part[:] = draw_ball(heights, film.colour, scene.clip.column, scale=SCALE)
    return pictures


def film_sound(film: BounceFilm) -> np.ndarray:
    """Its sound, float32 [n] at 48 kHz. What is early or late may sound in a neighbouring scene."""
    rng = np.random.default_rng((*film.seed, 1))
    clicks = np.array([time for scene in film.scenes for time in scene.clicks])
    sound = np.zeros(round(film.frames / FPS * SAMPLE_RATE), np.float32)
    ends = [scene.first for scene in film.scenes] + [film.frames]
    for scene, (first, end) in zip(film.scenes, pairwise(ends), strict=True):
        samples = np.arange(round(first / FPS * SAMPLE_RATE), round(end / FPS * SAMPLE_RATE))
        heard = clicks[(clicks > scene.start - _SLACK) & (clicks < end / FPS)]
        part = click_sound(samples, heard.tolist(), COLOURS[film.colour][1])
        noise = NOISE if scene.sound == "noisy" else 0.0
        sound[samples] = part + noise * rng.standard_normal(len(samples), np.float32)
    return sound


def generate_films(
    folder: str | Path, films: int, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> list[dict[str, Any]]:
    """Write `films` films into `folder`, their truth and metadata.jsonl, last; return the truths.

    progress: called with the number of films written so far.
    Raises MovaError for a count below 1, a folder that already holds clips, and for files under the films' names that
    were not written here.
    """
    folder = Path(folder)
    if films < 1:
        raise MovaError(f"films must be at least 1, got {films}")
    for listing in FILES:
        if os.path.lexists(folder / listing):
            raise MovaError(f"{folder} already holds clips ({listing}); give another folder")
    names = [f"film_{index:03d}" for index in range(films)]
    record = Written(folder, "films")
    record.check([f"{name}{suffix}" for name in names for suffix in (".mp4", ".json")], WAY_OUT)

    def make(index: int) -> dict[str, Any]:
        film, name = draw_film(seed, index), names[index]
        # Lossless pictures, as those of `bounce` are, and for the same reason.
        pictures, sound = film_pictures(film), film_sound(film)
        data = encode_mp4(f"{name}.mp4", pictures, sound, fps=FPS, sample_rate=SAMPLE_RATE, crf=0)
        record.write(f"{name}.mp4", data, WAY_OUT, sync=False)
        truth = {"film": name, **film.truth()}
        record.write(f"{name}.json", (json.dumps(truth, indent=1) + "\n").encode(), WAY_OUT, sync=False)
        return truth

    truths: list[dict[str, Any]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for truth in pool.map(make, range(films)):
            truths.append(truth)
            progress(len(truths))
    rows = [{"video_path": f"{truth['film']}.mp4", "caption": truth["caption"]} for truth in truths]
    record.write(FILES[0], "".join(json.dumps(row) + "\n" for row in rows).encode(), WAY_OUT)
    return truths
