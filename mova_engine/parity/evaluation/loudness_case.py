"""RMS and integrated loudness of recorded sounds, the weighting's filters, and how sound is taken from a file."""

import math
from typing import Any

import torch

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.stated import StatedCase, int16_sound
from mova_engine.scores import loudness

_SOURCE_RATE = 44100
_STRIDE = 4  # of the recorded samples


def run_loudness(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Both figures of each sound in both conventions."""
    rate = case.parameter("sample_rate")
    for name, ours in (
        ("block_seconds", loudness.BLOCK_SECONDS),
        ("overlap", loudness.OVERLAP),
        ("absolute_gate", loudness.ABSOLUTE_GATE),
        ("relative_gate", loudness.RELATIVE_GATE),
    ):
        case.require(name, ours)
    scores: dict[str, Any] = {}
    for name, recorded in case.values["scores"].items():
        sound = int16_sound(case.tensors[f"in.{name}"])
        scores[name] = {
            "seconds": len(sound) / rate,
            "amplitude_rms": loudness.rms(sound),
            "loudness_lufs": _loudness(sound, rate, recorded["loudness_lufs"]),
            "loudness_lufs_audiotools": loudness.loudness(sound, rate, "audiotools"),
        }
    shelf, high_pass = loudness.k_weighting(rate)
    stages = {
        name: {"b": stage[0].tolist(), "a": stage[1].tolist()}
        for name, stage in (("high_shelf", shelf), ("high_pass", high_pass))
    }
    stereo = case.tensors["in.extract.stereo_44100"]
    late = case.values["extract"]["zeros_in_front"]
    mono = loudness.mono_at(stereo, _SOURCE_RATE, late / rate, rate)
    extract = {
        "length": len(mono),
        "zeros_in_front": int((mono != 0).nonzero()[0]) if late else 0,
        "amplitude_rms": loudness.rms(mono),
    }
    values = {"scores": scores, "k_weighting": stages, "extract": extract}
    return EvaluationOutcome({"out.extract.mono_48000": mono[::_STRIDE]}, values)


def _loudness(sound: torch.Tensor, rate: int, recorded: Any) -> Any:
    """A number, or the recorded words where both have none: infinite loudness, or an error."""
    try:
        found = loudness.loudness(sound, rate, "mova")
    except MovaError:
        return recorded if str(recorded).startswith("raises ValueError") else "no number"
    return "-inf" if found == -math.inf else found


CASE = CaseRunner(
    run_loudness,
    {
        "values.*.amplitude_rms": Bound(1e-6, "relative"),
        "values.*.loudness_lufs": Bound(1e-4, "absolute"),
        "values.*.loudness_lufs_audiotools": Bound(1e-2, "absolute"),
        "values.*.seconds": Bound(1e-9, "absolute"),
        "values.k_weighting.*": Bound(1e-9),
        "out.*": Bound(1e-5),
    },
)
