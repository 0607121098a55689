"""The scores of a clip, each declared once: what it measures, in which unit, by which function. Data alone.

A score's function takes a clip's pictures uint8 [f, h, w, 3], its sound float32 [n], and by name `fps` and
`sample_rate` (Hz); it returns a number, or raises MovaError where the clip does not admit one.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """target: "module:attribute" of the function, imported only when it is used."""

    name: str
    target: str
    unit: str
    about: str


SCORES = {
    score.name: score
    for score in (
        Score("speech-lag", "mova_engine.scores.speech_lag:seconds", "s", "picture behind sound; negative: sound late"),
    )
}
