"""DNSMOS by its published networks: P.808, P.835 and the personalised variant, of sounds of all lengths and rates."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import every
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import dnsmos
from mova_engine.scores.features.mel import mel_filter_bank


def run_dnsmos(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Every sound of the case in the published convention; the networks run on the CPU whatever the device."""
    _require(case)
    networks = dnsmos.Dnsmos()
    tensors = {"mid.mel_filterbank": _bank()}
    scores = {}
    for name, stated in case.values["scores"].items():
        samples = case.tensors[f"in.{name}"].numpy() / 32768
        scores[name] = _ratings(networks, samples, stated["sample_rate"])
        if f"mid.{name}.mel_window0" in case.tensors:
            tensors |= _first_input(case, name, samples, stated["sample_rate"])
    values = {
        "scores": scores,
        "onnx_inputs": {name: _inputs(dnsmos.FILES[name].session()) for name in ("P808", "P835")},
        "polynomials_at_raw_then_SIG_BAK_OVRL": {
            kind: [[row[0], *_polynomials(row[0], kind)] for row in rows]
            for kind, rows in case.values["polynomials_at_raw_then_SIG_BAK_OVRL"].items()
        },
    }
    return EvaluationOutcome(tensors, values)


def _require(case: StatedCase) -> None:
    case.require("sample_rate", dnsmos.RATE)
    case.require("window_seconds", dnsmos.WINDOW_SECONDS)
    case.require("window_samples", dnsmos.WINDOW)
    case.require("hop_seconds", 1.0)
    mel = {
        "n_fft": dnsmos.N_FFT,
        "hop_length": dnsmos.HOP,
        "n_mels": dnsmos.MELS,
        "window": "hann",
        "center": True,
        "pad_mode": "constant",
        "power": 2.0,
        "drop_last_samples": dnsmos.DROPPED,
    }
    case.require("mel", mel)
    case.require("polynomials_highest_power_first", dnsmos.POLYNOMIALS)
    for file in dnsmos.FILES.values():
        path = file.places[1]
        stated = case.values["onnx_files_of_the_reference"][path]["sha256"]
        if stated != file.sha256:
            raise MovaError(f"{case.case.path}: the case ran another {path} than ours, of SHA-256 {stated}")


def _bank() -> Tensor:
    return mel_filter_bank(dnsmos.RATE, dnsmos.N_FFT, dnsmos.MELS, scale="slaney", norm="slaney").T


def _ratings(networks: dnsmos.Dnsmos, samples: np.ndarray, rate: int) -> dict[str, Any]:
    found = networks.rate(samples, rate, convention="mova")
    windows, _ = dnsmos.windows_of(dnsmos.at_16k(samples, rate), "mova")
    personal = networks.p835_outputs(windows, personalised=True)
    return {
        "sample_rate": rate,
        "seconds": len(samples) / rate,
        "num_hops": found.hops,
        "windows_scored": len(found.p808),
        "P808_MOS": found.p808_mos,
        "P808_per_window": found.p808.tolist(),
        "raw_SIG_BAK_OVRL_per_window": found.p835.tolist(),
        **_axes(found.p835, np.array([found.sig, found.bak, found.ovrl])),
        "personalised": _axes(personal, dnsmos.polynomial_ratings(personal, personalised=True).mean(0)),
    }


def _axes(raw: np.ndarray, ratings: np.ndarray) -> dict[str, float]:
    raw_names = [f"{axis}_raw" for axis in dnsmos.AXES]
    return dict(zip([*raw_names, *dnsmos.AXES], [*raw.mean(0).tolist(), *ratings.tolist()], strict=True))


def _first_input(case: StatedCase, name: str, samples: np.ndarray, rate: int) -> dict[str, Tensor]:
    (first, *_), _ = dnsmos.windows_of(dnsmos.at_16k(samples, rate), "mova")
    mel = torch.from_numpy(dnsmos.p808_input(first))
    kept = f"mid.{name}.mel_window0"
    return {kept: mel[:: every(case, kept, "frames")], f"{kept}_sum_over_frames": mel.double().sum(0)}


def _inputs(session: Any) -> list[list[Any]]:
    return [[x.name, [str(size) for size in x.shape], x.type] for x in session.get_inputs()]


def _polynomials(raw: float, kind: str) -> list[float]:
    return dnsmos.polynomial_ratings([raw] * 3, personalised=kind == "personalised").tolist()


CASE = CaseRunner(
    run_dnsmos,
    {
        "mid.mel_filterbank": Bound(1e-6),
        "mid.*.mel_window0": Bound(2e-4, "absolute"),
        "mid.*.mel_window0_sum_over_frames": Bound(900 * 2e-4, "absolute"),
        "values.polynomials*": Bound(1e-9, "absolute"),
        "values.scores.*": Bound(1e-4, "absolute"),
    },
    {
        "values.onnx_files*": "which files there are: the run checks those that it loads",
        "values.one_against_two_threads*": "the reference's own rounding",
    },
)
