"""Seconds that a job's stages take: measured on this machine, kept in the store, scaled to clips of other sizes; until
the first clip is measured, those that the planner has for a device that it knows.

A stage's seconds are those of one clip. Steps are scaled by tokens of the video and evaluations a step, the rest by
tokens: less than what attention costs of much longer clips, until one such clip was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mova_engine.serving.store_database import StoreDatabase
from mova_engine.serving.video_job import VideoSettings

ENCODE, STEP, DECODE = "encode", "step", "decode"
# Relative to a step, where nothing was measured: progress needs shares, not seconds.
_SHARES = {ENCODE: 1.0, STEP: 1.0, DECODE: 2.0}
# Weight of a new measurement against those before.
_NEW = 0.5


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of one clip's stages; a step's, one of many."""

    encode: float
    step: float
    decode: float


class JobTimes:
    """What was measured of a model's clips."""

    def __init__(self, store: StoreDatabase, model: str) -> None:
        self._store, self._key, self._planned = store, f"times {model}", f"planned {model}"

    def stages(self, tokens: int, evaluations: int) -> StageSeconds | None:
        """Seconds by the measured clip whose size is nearest, or by the plan; None: there is neither."""
        nearest: tuple[float, Mapping[str, float]] | None = None
        known_clips = self._store.measured(self._key) or self._store.measured(self._planned)
        for size, seconds in known_clips.items():
            known, calls = (int(x) for x in size.split("x"))
            ratio = tokens / known
            distance = max(ratio, 1 / ratio) * (1 if calls == evaluations else 1.5)
            scaled = {name: each * ratio for name, each in seconds.items()}
            scaled[STEP] *= evaluations / calls
            if nearest is None or distance < nearest[0]:
                nearest = distance, scaled
        return None if nearest is None else StageSeconds(**nearest[1])

    def seconds(self, settings: VideoSettings, steps: int, evaluations: int) -> float | None:
        """Predicted seconds of a clip's work; None: nothing was measured, or planned."""
        found = self.stages(settings.video_tokens, evaluations)
        return None if found is None else found.encode + steps * found.step + found.decode

    def plan(self, tokens: int, evaluations: int, step: float) -> None:
        """Keep what the planner has for a step of such a clip. It has none for words and pictures: they get shares."""
        seconds = {name: share * step for name, share in _SHARES.items()}
        self._store.note_measured(self._planned, {f"{tokens}x{evaluations}": seconds})

    def note(self, tokens: int, evaluations: int, found: StageSeconds) -> None:
        """Keep what a clip took."""
        kept, size = self._store.measured(self._key), f"{tokens}x{evaluations}"
        before = kept.get(size, vars(found))
        kept[size] = {name: (1 - _NEW) * before[name] + _NEW * value for name, value in vars(found).items()}
        self._store.note_measured(self._key, kept)


class JobProgress:
    """How far a batch is, by the seconds of its stages. stages: predicted, None: shares. steps: of a window."""

    def __init__(self, stages: StageSeconds | None, steps: int, windows: int, clips: int) -> None:
        self._known, self._steps = stages is not None, steps
        found = stages or StageSeconds(_SHARES[ENCODE], _SHARES[STEP], _SHARES[DECODE])
        self._encode, self._step, self._decode = found.encode * clips, found.step * clips, found.decode * clips
        self._window = self._encode + steps * self._step + self._decode
        self._total, self._before, self._done = max(1e-9, windows * self._window), 0.0, 0.0
        self._taken: list[float] = []

    def encoded(self) -> None:
        """Words and pictures of a window are encoded."""
        self._at(self._encode)

    def stepped(self, step: int, seconds: float) -> None:
        """So many steps of a window are done, the last one in `seconds`."""
        self._taken.append(seconds)
        self._at(self._encode + step * self._step)

    def decoded(self, share: float) -> None:
        """A share of a window is decoded."""
        self._at(self._encode + self._steps * self._step + share * self._decode)

    def window_done(self) -> None:
        """The next window begins."""
        self._before += self._window
        self._at(0.0)

    def _at(self, seconds: float) -> None:
        self._done = max(self._done, min(self._total, self._before + seconds))

    @property
    def percent(self) -> float:
        """0 to 100."""
        return 100 * self._done / self._total

    @property
    def eta_s(self) -> float | None:
        """Seconds that are left, by the steps that were taken; None: nothing was measured yet."""
        left = self._total - self._done
        if self._taken:
            # The first step may compile and read weights: the middle one is what the others take.
            return left * sorted(self._taken)[len(self._taken) // 2] / max(1e-9, self._step)
        return left if self._known else None
