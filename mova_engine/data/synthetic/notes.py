"""The embedded sounds: one to three notes whose number, pitch, instrument and times a caption says.

    mova nano sounds OUT --clips 768 --seed 0 --split train

writes `OUT/music`, `OUT/sound` and `OUT/speech`, each a folder of clips with its metadata.jsonl (video_path, caption,
and the truth: count, pitch, instrument, pace, onsets), and one of all of them in OUT. The files are wav, flac, ogg, mp3
and m4a, and mp4 videos of a grey picture, in turn. A model that has learnt the captions puts the right pitch at the
right time.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mova_engine.data.media.write import encode_mp4
from mova_engine.data.media.write_sound import encode_sound_file
from mova_engine.data.metadata import FILES
from mova_engine.errors import MovaError
from mova_engine.files.written import Written

WAY_OUT = "give another folder"

FRAMES, SIZE, FPS, SAMPLE_RATE = 33, 48, 24.0, 48000
DURATION = FRAMES / FPS
# The suffixes of the files, in turn.
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".mp4")


class Instrument(NamedTuple):
    """How a note sounds. kind: its domain. partials: amplitudes of its harmonics from the fundamental on. attack, hold,
    decay: seconds in which it rises, stays, and falls by 1 / e.
    """

    kind: str
    partials: tuple[float, ...]
    attack: float
    hold: float
    decay: float


# Singular of the word in captions -> its sound. The fundamental is the strongest partial, or nearly, of each.
INSTRUMENTS: dict[str, Instrument] = {
    "flute note": Instrument("music", (1.0, 0.25, 0.08), 0.015, 0.08, 0.02),
    "piano note": Instrument("music", (1.0, 0.5, 0.3, 0.15, 0.08), 0.002, 0.0, 0.07),
    "beep": Instrument("sound", (1.0,), 0.004, 0.09, 0.008),
    "buzz": Instrument("sound", (1.0, 0.0, 0.6, 0.0, 0.4, 0.0, 0.25), 0.004, 0.09, 0.008),
    "sung ah": Instrument("speech", (0.9, 1.0, 0.8, 0.35, 0.2), 0.02, 0.07, 0.02),
    "sung oo": Instrument("speech", (1.0, 0.35, 0.06, 0.12), 0.02, 0.07, 0.02),
}
KINDS = tuple(dict.fromkeys(instrument.kind for instrument in INSTRUMENTS.values()))
# Word -> Hz of the fundamental. All are multiples of 50 Hz, so that with the phase locked to absolute time a note's
# waveform repeats in every 20 ms audio latent, whenever it starts.
PITCHES: dict[str, float] = {"deep": 200.0, "low": 300.0, "middle": 450.0, "high": 650.0, "shrill": 950.0}
COUNTS: dict[str, int] = {"one": 1, "two": 2, "three": 3}
# Word -> seconds of the first onset; word -> seconds from onset to onset.
STARTS: dict[str, float] = {"at once": 0.05, "soon": 0.2, "later": 0.35, "late": 0.5}
PACES: dict[str, float] = {"quick": 0.2, "slow": 0.3}
# Seconds by which a clip's onsets differ at random, together, from what its caption says, to either side.
JITTER = 0.01
# Of full scale, the peak of the loudest partials together; drawn for each clip.
LEVELS = (0.4, 0.8)


@dataclass(frozen=True)
class Notes:
    """The parameters of one clip. pace: None for a single note. shift: seconds by which it is late. level: of full
    scale.
    """

    count: str
    pitch: str
    instrument: str
    start: str
    pace: str | None
    shift: float = 0.0
    level: float = 0.6

    @property
    def caption(self) -> str:
        """As "three low beeps starting late at a quick pace"."""
        several = COUNTS[self.count] > 1
        plural = ("es" if self.instrument.endswith("z") else "s") if several else ""
        pace = f" at a {self.pace} pace" if several else ""
        return f"{self.count} {self.pitch} {self.instrument}{plural} starting {self.start}{pace}"

    @property
    def onsets(self) -> tuple[float, ...]:
        """Seconds at which its notes begin."""
        step = 0.0 if self.pace is None else PACES[self.pace]
        return tuple(round(STARTS[self.start] + self.shift + step * k, 6) for k in range(COUNTS[self.count]))


def _combinations() -> list[Notes]:
    paces: dict[str, tuple[str | None, ...]] = {name: (None,) if n == 1 else tuple(PACES) for name, n in COUNTS.items()}
    return [
        Notes(count, pitch, instrument, start, pace)
        for count, pitch, instrument, start in product(COUNTS, PITCHES, INSTRUMENTS, STARTS)
        for pace in paces[count]
    ]


def _held_out(notes: Notes) -> bool:
    """One combination in six, such that every pair of two properties is trained."""
    orders = (COUNTS, PITCHES, INSTRUMENTS, STARTS)
    values = (notes.count, notes.pitch, notes.instrument, notes.start)
    places = [list(order).index(value) for order, value in zip(orders, values, strict=True)]
    return (places[0] + places[1] + places[2] + 2 * places[3] + (notes.pace == "slow")) % 6 == 0


# Every word is seen in training; these combinations of them are not.
HELD_OUT: tuple[Notes, ...] = tuple(notes for notes in _combinations() if _held_out(notes))
TRAINED: tuple[Notes, ...] = tuple(notes for notes in _combinations() if not _held_out(notes))
SPLITS = {"train": TRAINED, "heldout": HELD_OUT}


def read_caption(caption: str) -> Notes | None:
    """The notes that a caption asks for; None for a caption of another form."""
    return _BY_CAPTION.get(caption)


_BY_CAPTION = {notes.caption: notes for notes in (*TRAINED, *HELD_OUT)}


def draw(rng: np.random.Generator, notes: Notes) -> Notes:
    """A clip of these notes: U(-10, 10) ms early or late, at a level of U(0.4, 0.8)."""
    shift, level = rng.uniform(-JITTER, JITTER), rng.uniform(*LEVELS)
    return Notes(notes.count, notes.pitch, notes.instrument, notes.start, notes.pace, round(shift, 6), round(level, 4))


def render(notes: Notes) -> np.ndarray:
    """The sound, float32 [n] at 48 kHz: at each onset the instrument's harmonics of the pitch under its envelope."""
    instrument = INSTRUMENTS[notes.instrument]
    t = np.arange(round(DURATION * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = PITCHES[notes.pitch]
    tone = sum(a * np.sin(2 * np.pi * pitch * k * t) for k, a in enumerate(instrument.partials, 1))
    envelope = np.zeros_like(t)
    for onset in notes.onsets:
        since = t - onset
        rise = np.clip(since / instrument.attack, 0, 1)
        fall = np.exp(-np.maximum(since - instrument.attack - instrument.hold, 0) / instrument.decay)
        envelope = np.maximum(envelope, rise * fall)
    return (notes.level / sum(instrument.partials) * envelope * tone).astype(np.float32)


def encode(name: str, sound: np.ndarray) -> bytes:
    """The content of the file `name`: an mp4 video of a grey picture with this sound, or a file of sound."""
    if not name.endswith(".mp4"):
        return encode_sound_file(name, sound, SAMPLE_RATE)
    picture = np.full((FRAMES, SIZE, SIZE, 3), 128, np.uint8)
    return encode_mp4(name, picture, sound, fps=FPS, sample_rate=SAMPLE_RATE)


def generate_sounds(
    folder: str | Path,
    clips: int,
    seed: int = 0,
    split: str = "train",
    progress: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """Write `clips` clips of a split into a folder of `folder` for each kind of sound; return these folders.

    Each has a metadata.jsonl of its own, and `folder` one of all of them, which is written last: where it is, all is
    complete. The kinds take turns, and so do a kind's combinations of words, in an order drawn from the seed. Clip i
    depends only on (seed, split, i).
    progress: called with the number of clips written so far.
    Raises MovaError for an unknown split, fewer clips than there are kinds, a folder that already holds clips, and for
    files under the clips' names that were not written here.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise MovaError(f"unknown split '{split}'. Known: {', '.join(SPLITS)}")
    if clips < len(KINDS):
        raise MovaError(f"clips must be at least {len(KINDS)}, one of each kind ({', '.join(KINDS)}), got {clips}")
    files = [_file_of(split, index) for index in range(clips)]
    listings = [f"{kind}/{FILES[0]}" for kind in KINDS]
    for name in FILES:
        if os.path.lexists(folder / name):
            raise MovaError(f"{folder} already holds clips ({name}); give another folder")
    record = Written(folder, "notes")
    record.check([*files, *listings, FILES[0]], WAY_OUT)
    drawn = _drawn(clips, seed, split)
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)

    def make(index: int) -> dict[str, Any]:
        name, notes = files[index], drawn[index]
        record.write(name, encode(name, render(notes)), WAY_OUT, sync=False)
        truth = {key: value for key, value in asdict(notes).items() if key != "start"}
        # The key "start" would say where in its file a clip begins.
        return {"video_path": name, "caption": notes.caption, **truth, "first": notes.start, "onsets": notes.onsets}

    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row in pool.map(make, range(clips)):
            rows.append(row)
            progress(len(rows))
    for kind, listing in zip(KINDS, listings, strict=True):
        own = [row for row in rows if row["video_path"].startswith(f"{kind}/")]
        near = [{**row, "video_path": row["video_path"].removeprefix(f"{kind}/")} for row in own]
        record.write(listing, _lines(near), WAY_OUT)
    record.write(FILES[0], _lines(rows), WAY_OUT)
    return [folder / kind for kind in KINDS]


def _file_of(split: str, index: int) -> str:
    """Clip `index` has the kind `index` mod 3; its suffix changes with each round of the kinds."""
    kind, suffix = KINDS[index % len(KINDS)], SUFFIXES[index // len(KINDS) % len(SUFFIXES)]
    return f"{kind}/{split}_{index:05d}{suffix}"


def _drawn(clips: int, seed: int, split: str) -> list[Notes]:
    number, found = list(SPLITS).index(split), list[Notes]()
    orders = [
        np.random.default_rng((seed, number, place)).permutation(
            [i for i, notes in enumerate(SPLITS[split]) if INSTRUMENTS[notes.instrument].kind == kind]
        )
        for place, kind in enumerate(KINDS)
    ]
    for index in range(clips):
        order = orders[index % len(KINDS)]
        chosen = SPLITS[split][order[index // len(KINDS) % len(order)]]
        found.append(draw(np.random.default_rng((seed, number, len(KINDS), index)), chosen))
    return found


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
