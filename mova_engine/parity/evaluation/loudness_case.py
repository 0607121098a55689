"""RMS and integrated loudness of recorded sounds, the weighting's filters, and how sound is taken from a file."""

import math
import re
from typing import Any

import torch

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import description, every
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.stated import StatedCase, int16_sound
from mova_engine.scores import loudness

# Names state the rates, and the description when the first sample comes.
_SOURCE, _EXTRACT = re.compile(r"in\.extract\.\w+_(\d+)"), re.compile(r"out\.extract\.\w+_(\d+)")
_START = re.compile(r"first sample at (-?[\d.]+) s")


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
    tensors, extract = _extract(case)
    return EvaluationOutcome(tensors, {"scores": scores, "k_weighting": stages, "extract": extract})


def _extract(case: StatedCase) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A file's sound from a stated start, at the rate that the recorded tensor's name has."""
    (name, source), (made, target) = (
        next((found[0], int(found[1])) for x in case.tensors if (found := pattern.fullmatch(x)))
        for pattern in (_SOURCE, _EXTRACT)
    )
    if not (stated := _START.search(description(case, name))):
        raise MovaError(f"{case.case.path}: tensors.{name} does not say when its first sample comes")
    mono = loudness.mono_at(case.tensors[name], source, float(stated[1]), target)
    heard = (mono != 0).nonzero()
    values = {
        "length": len(mono),
        "zeros_in_front": int(heard[0]) if len(heard) else len(mono),
        "amplitude_rms": loudness.rms(mono),
    }
    return {made: mono[:: every(case, made, "samples")]}, values


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
