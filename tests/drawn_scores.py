"""A score for tests of evaluations: the peak of a sound in per cent, with numbers of the set and of pairs."""

import numpy as np

from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import DecodedClip, Measured
from mova_engine.scores.score_declaration import Score, ScoreColumn, SetNumber


def peak(clip: DecodedClip) -> Measured:
    value = round(float(np.abs(clip.sound(16000)).max()) * 100)
    if value == 0:
        raise MovaError("silent")
    return Measured({"peak": value, "peak_pairs": 2.0 * value}, {"logits": np.array([value], np.float32)})


def peak_of_pair(sound, pictures):
    return {"peak": abs(float(sound["logits"][0] - pictures["logits"][0]))}


def largest(evidence, convention):
    return float(max(x["logits"][0] for x in evidence))


def mean_difference(evidence, reference, convention):
    assert len(evidence) == len(reference)
    return float(np.mean([a["logits"][0] - b["logits"][0] for a, b in zip(evidence, reference, strict=True)]))


def distance(evidence, reference, convention):
    own, real = (np.mean([x["logits"][0] for x in each]) for each in (evidence, reference))
    return float(own - real), "few clips"


PEAK = Score(
    "peak",
    "drawn_scores:peak",
    (ScoreColumn("peak", "%", "peak of the sound", better="up"), ScoreColumn("peak_pairs", "", "twice that")),
    set_numbers=(
        SetNumber("largest", "%", "largest peak", "drawn_scores:largest", "up"),
        SetNumber("pair_difference", "%", "mean difference", "drawn_scores:mean_difference", "down", "pairs"),
        SetNumber("set_difference", "%", "difference of means", "drawn_scores:distance", "down", "set"),
    ),
)
