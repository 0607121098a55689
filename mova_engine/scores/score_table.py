"""The scores of a clip, each declared once: what it measures, in which columns, by which function. Data alone.

A score's function takes a `DecodedClip` (mova_engine.scores.decoded_clip) and returns {column: number}, or `Measured`
with evidence beside it; it raises MovaError, with the reason, where the clip does not admit a number. A column that it
leaves out is a number that is missing.
"""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", ""]


@dataclass(frozen=True)
class ScoreColumn:
    """One number of a score. low, high: its range (None: open). better: "up", "down", or "" where neither is."""

    name: str
    unit: str
    about: str
    low: float | None = None
    high: float | None = None
    better: Direction = ""


@dataclass(frozen=True)
class Score:
    """target: "module:attribute" of the function, imported only when it is used.

    version: rises when the same clip gets another number. convention: whose definition the numbers follow. check:
    "module:function" that raises MovaError where this machine lacks a package or a file that the score needs. chance:
    "module:function" of two clips' evidence, the sound of one and the pictures of the other, which gives the numbers
    of such a pair.
    """

    name: str
    target: str
    columns: tuple[ScoreColumn, ...]
    version: int = 1
    convention: str = "corrected"
    check: str = ""
    chance: str = ""


_HERE = "mova_engine.scores.clip_scores"
SCORES = {
    score.name: score
    for score in (
        Score(
            "speech-lag",
            f"{_HERE}:speech_lag",
            (ScoreColumn("speech_lag", "s", "picture behind sound; negative: sound late"),),
        ),
        Score(
            "loudness",
            f"{_HERE}:loudness",
            (
                ScoreColumn("rms", "", "root mean square of the sound; full scale is 1", 0, 1),
                ScoreColumn("lufs", "LUFS", "integrated loudness, BS.1770", -70, None),
            ),
        ),
        Score(
            "sound-quality",
            f"{_HERE}:sound_quality",
            (
                ScoreColumn("silence", "", "share of the sound below -50 dBFS", 0, 1, "down"),
                ScoreColumn("digital_silence", "", "share of the sound that is exactly zero", 0, 1, "down"),
                ScoreColumn("leading_silence", "", "share that is silent at the start", 0, 1, "down"),
                ScoreColumn("trailing_silence", "", "share that is silent at the end", 0, 1, "down"),
                ScoreColumn("band_edge", "Hz", "highest frequency within 50 dB of the strongest", 0, None, "up"),
                ScoreColumn("clipping", "", "share of samples cut at full scale", 0, 1, "down"),
            ),
        ),
        Score(
            "av-align",
            f"{_HERE}:av_align",
            (ScoreColumn("av_align", "", "onsets of sound that meet peaks of motion, of all", 0, 1, "up"),),
            convention="mova",
            check=f"{_HERE}:check_av_align",
            chance=f"{_HERE}:av_align_of_pair",
        ),
        Score(
            "dnsmos",
            f"{_HERE}:dnsmos",
            (
                ScoreColumn("dnsmos_p808", "MOS", "overall quality of speech, P.808", 1, 5, "up"),
                ScoreColumn("dnsmos_sig", "MOS", "speech itself, P.835", 1, 5, "up"),
                ScoreColumn("dnsmos_bak", "MOS", "absence of background noise, P.835", 1, 5, "up"),
                ScoreColumn("dnsmos_ovrl", "MOS", "overall, P.835", 1, 5, "up"),
            ),
            check=f"{_HERE}:check_dnsmos",
        ),
    )
}
COLUMNS = {column.name: column for score in SCORES.values() for column in score.columns}
