"""Measures decoded clips: opened networks, the convention of each score, and what failed."""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mova_engine.backend import get_backend
from mova_engine.errors import MovaError
from mova_engine.ops import resolve
from mova_engine.scores.decoded_clip import DecodedClip, Measured
from mova_engine.scores.score_declaration import CONVENTIONS, Score
from mova_engine.scores.weights_folder import WeightsFolder

# Packages whose own errors are a clip's reason: their code is not ours, and one clip must not end a run.
_NATIVE = {"cv2": "OpenCV", "onnxruntime": "onnxruntime", "av": "FFmpeg"}
# The convention that is followed where none is asked for.
CONVENTION = "corrected"


@dataclass
class ClipScores:
    """values: {column: number} of what could be measured; reasons: {score: why} of what could not; seconds: {score:
    time}, with "decode" for reading the file; evidence: {score: what a set's chance levels and numbers come from}.

    passing: the scores whose reason is this run's, such as memory that was short, and not the clip's.
    """

    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    passing: set[str] = field(default_factory=set)


class ScoreRunner:
    """Runs scores of clips, from several threads too; networks are opened when they are first needed, and stay."""

    def __init__(
        self, weights: WeightsFolder | None = None, *, device: str = "cpu", convention: str = CONVENTION
    ) -> None:
        """Raises MovaError for a device that cannot be used and for an unknown convention."""
        if convention not in CONVENTIONS:
            raise MovaError(f"unknown convention '{convention}'. Known: {', '.join(CONVENTIONS)}")
        self.weights = weights or WeightsFolder(None)
        self.backend = get_backend(device)
        self.backend.require_full_precision()
        self.device = self.backend.device()
        self.asked = convention
        # What was heard in clips, by name or id, and by whom; {} without.
        self.transcripts: dict[str, str] = {}
        self.recogniser = ""
        # Networks of a device take turns: kernels of several threads on one device do not add up.
        self._stopped = threading.Event()
        self._turn = threading.Lock() if self.device.type != "cpu" else None

    def lacking(self, score: Score) -> str:
        """Why a score cannot be measured for want of weights or transcripts; "" where it can."""
        if score.transcripts and not self.transcripts:
            return "it needs transcripts of the clips: mova eval CLIPS --transcripts FILE"
        return self.weights.lacking(score.weights)

    def facts(self, score: Score) -> dict[str, Any]:
        """What a score's numbers depend on besides the clip: version, convention, SHA-256 of its weights, and who heard
        its transcripts.
        """
        heard = {"recogniser": self.recogniser} if score.transcripts else {}
        return {
            **heard,
            "version": score.version,
            "convention": score.convention(self.asked),
            "weights": {name: self.weights.digest(name) for name in score.weights},
        }

    def open(self, scores: Iterable[Score]) -> None:
        """Open the networks of these scores now. MovaError for a file that is another one."""
        for score in scores:
            self._network(score)

    def stop(self) -> None:
        """Have other threads' `measure` end after the score that they are at, by a MovaError."""
        self._stopped.set()

    def measure(self, clip: DecodedClip, scores: Iterable[Score], prompt: str | None = None) -> ClipScores:
        """Numbers of these scores of one clip. A score that fails has a reason instead of a number.

        prompt: the clip's caption, for scores of sound and text.
        """
        found = ClipScores()
        for score in scores:
            if self._stopped.is_set():
                raise MovaError("measuring was stopped")
            start = time.perf_counter()
            try:
                self._store(score, self.run(clip, score, prompt), found)
            except MovaError as error:
                found.reasons[score.name] = str(error)
            except (MemoryError, torch.OutOfMemoryError) as error:
                found.reasons[score.name] = f"out of memory: {str(error).splitlines()[0] if str(error) else score.name}"
                found.passing.add(score.name)
            except Exception as error:
                if (package := type(error).__module__.partition(".")[0]) not in _NATIVE:
                    raise
                told = str(error).strip().splitlines() or [type(error).__name__]
                found.reasons[score.name] = f"{_NATIVE[package]} failed on this clip: {told[0]}"
            found.seconds[score.name] = time.perf_counter() - start
        return found

    @torch.no_grad()
    def run(self, clip: DecodedClip, score: Score, prompt: str | None = None) -> dict[str, float] | Measured:
        """What a score's function returns of a clip. MovaError where it has no number."""
        arguments: list[Any] = [clip]
        named: dict[str, Any] = {}
        convention = score.convention(self.asked)
        if score.weights:
            arguments += [self._network(score), convention]
        elif len(score.conventions) > 1:
            named["convention"] = convention
        if score.prompt:
            if not (prompt and prompt.strip()):
                raise MovaError("the clip has no caption (metadata.jsonl, or a .txt beside it)")
            named["prompt"] = prompt
        function = resolve(score.target)
        if self._turn is None or not score.weights:
            return function(*arguments, **named)
        with self._turn:
            return function(*arguments, **named)

    @torch.no_grad()
    def chance(self, score: Score, sound: Any, pictures: Any) -> dict[str, float]:
        """The numbers of one clip's sound with another's pictures, from the evidence of both."""
        extra = (self._network(score), score.convention(self.asked)) if score.chance_network else ()
        return resolve(score.chance)(sound, pictures, *extra)

    def _network(self, score: Score) -> Any:
        opened = {name: self.weights.open(name, self.device) for name in score.weights}
        return next(iter(opened.values())) if len(opened) == 1 else opened

    def _store(self, score: Score, measured: dict[str, float] | Measured, found: ClipScores) -> None:
        if not isinstance(measured, Measured):
            measured = Measured(measured, None)
        _check(score, measured.values)
        if any(not np.isfinite(each).all() for each in _arrays(measured.evidence)):
            # One such clip would leave the whole set without a number.
            raise MovaError("what is kept of it for numbers of the set came out as NaN or infinite")
        if measured.evidence is not None:
            found.evidence[score.name] = measured.evidence
        if measured.reason:
            found.reasons[score.name] = measured.reason
        found.values |= measured.values


def _arrays(evidence: Any) -> Iterator[np.ndarray]:
    """The arrays of floats within a score's evidence."""
    if isinstance(evidence, np.ndarray):
        if evidence.dtype.kind == "f":
            yield evidence
    elif isinstance(evidence, Mapping | list | tuple):
        for each in evidence.values() if isinstance(evidence, Mapping) else evidence:
            yield from _arrays(each)


def _check(score: Score, measured: dict[str, float]) -> None:
    """MovaError for a number that is none, as of samples far beyond full scale: this clip has no score then.

    A number that no column declares is a fault of the score's function.
    """
    unknown = measured.keys() - {column.name for column in score.columns}
    if unknown:
        raise RuntimeError(f"score {score.name} returned {', '.join(sorted(unknown))}, which it does not declare")
    for name, value in measured.items():
        if not math.isfinite(value):
            raise MovaError(f"{name} came out as {value}")
