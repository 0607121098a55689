"""What a clip is measured by.

from mova_engine import scores

scores.get("loudness")("clip.mp4")  # {"rms": 0.08, "lufs": -23.4}
scores.get("desync", weights="weights")("clip.mp4")
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mova_engine.scores.clip_score import ClipScore
    from mova_engine.scores.score_declaration import Score


def get(
    score: "str | Score",
    *,
    weights: str | Path | None = None,
    accept_noncommercial: bool = False,
    convention: str = "corrected",
    device: str = "cpu",
) -> "ClipScore":
    """A score by its name, or by a declaration of one's own, ready to be called with clips.

    weights: folder of its network's files, where it needs some. convention: "mova", "av-benchmark" or "corrected"; a
    score that does not know it follows its first. device: "cpu", "cuda" or "npu". Raises MovaError for an unknown name
    and for weights that are missing.
    """
    from mova_engine.scores.clip_score import open_score

    return open_score(score, weights, accept_noncommercial, convention, device)
