"""One score as programs use it: called with a clip, it returns its numbers."""

from pathlib import Path

from mova_engine.errors import MovaError
from mova_engine.ops import resolve
from mova_engine.scores.clip_reader import read_clip
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_file import known_score
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.weights_folder import WeightsFolder


class ClipScore:
    """score(clip) -> {column: number}. The network is opened at once and stays; calls may come from several threads."""

    def __init__(self, declared: Score, runner: ScoreRunner) -> None:
        self.declared = declared
        self._runner = runner

    def __call__(self, clip: str | Path | DecodedClip, *, prompt: str | None = None) -> dict[str, float]:
        """The numbers of a clip; those that it does not admit are left out.

        clip: a media file, which is decoded in a process of its own, or one that is decoded already. prompt: its
        caption, for scores of sound and text. Raises MovaError, with the reason, where there is no number.
        """
        decoded = clip if isinstance(clip, DecodedClip) else read_clip(clip)
        found = self._runner.measure(decoded, [self.declared], prompt)
        if not found.values:
            told = found.reasons.get(self.declared.name, "it has no number of a single clip")
            raise MovaError(f"{decoded.path}: {self.declared.name}: {told}")
        return found.values


def open_score(
    score: str | Score, weights: str | Path | None, accept_noncommercial: bool, convention: str, device: str
) -> ClipScore:
    """A score with its network opened. Arguments and errors as of `mova_engine.scores.get`."""
    declared = score if isinstance(score, Score) else known_score(score)
    folder = WeightsFolder(Path(weights) if weights else None, accept_noncommercial=accept_noncommercial)
    runner = ScoreRunner(folder, device=device, convention=convention)
    if reason := runner.lacking(declared):
        raise MovaError(f"{declared.name} cannot be measured: {reason}")
    if declared.check:
        resolve(declared.check)()
    runner.open([declared])
    return ClipScore(declared, runner)
