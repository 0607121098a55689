"""Distances between sets from stored features and logits: FD, KL, KID, the split inception score."""

import re
from typing import Any

import numpy as np
import torch

from mova_engine.errors import MovaError
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import distances

_SPLIT = re.compile(r"splits_(\d+)_shuffle_(True|False)_seed_(\d+)")
_SUBSETS = re.compile(r"subsets_(\d+)_size_(\d+)_seed_(\d+)")
_KERNEL = re.compile(r"degree_(\d+)_gamma_(None|[\d.e-]+)_coef0_([\d.e-]+)")
_SEED = re.compile(r"permutation_seed_(\d+)")
# The value for another kernel does not state its subsets; a search over counts, sizes and seeds found these alone.
_UNSTATED = {"subsets": 4, "subset_size": 20, "seed": 5}


def run_set_metrics(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """All distances of the case; the names of values state their options."""
    x = {name.removeprefix("in."): t.numpy() for name, t in case.tensors.items() if name.startswith("in.")}
    generated, real = x["features_generated"], x["features_real"]
    first, second, truth = x["kl.generated_first"], x["kl.generated_second"], x["kl.real"]
    mean, covariance = distances.moments(generated)
    values: dict[str, Any] = {
        "FD": {
            "FD": distances.frechet_distance(generated, real),
            "FD_swapped": distances.frechet_distance(real, generated),
            "FD_of_a_set_with_itself": distances.frechet_distance(generated, generated),
            "FD_float64_features": distances.frechet_distance(generated.astype(np.float64), real.astype(np.float64)),
            "FD_singular": distances.frechet_distance(x["few_generated"], x["few_real"]),
        },
        "KL": {
            "one_sample": _kl(truth, first),
            "two_samples_only_the_last_counts": _kl(truth, second),
            "swapped": _kl(first, truth),
            "identical": _kl(truth, truth),
        },
        "IS_split": {name: _split(name, first) for name in case.values["IS_split"]},
        "KID": {name: _kid(name, generated, real) for name in case.values["KID"]},
    }
    for name in case.values:
        if stated := _SEED.fullmatch(name):
            values[name] = np.random.RandomState(int(stated[1])).permutation(len(first)).tolist()
    tensors = {
        "mid.fd.mean_generated": torch.from_numpy(mean),
        "mid.fd.cov_generated": torch.from_numpy(covariance),
    }
    return EvaluationOutcome(tensors, values)


def _kl(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    return {
        "kl_softmax": distances.kl_divergence(real, generated),
        "kl_sigmoid": distances.kl_sigmoid(real, generated),
    }


def _split(name: str, logits: np.ndarray) -> dict[str, float]:
    if not (stated := _SPLIT.fullmatch(name)):
        raise MovaError(f"values.IS_split.{name} does not state splits, shuffle and seed")
    found = distances.split_inception_score(logits, int(stated[1]), shuffle=stated[2] == "True", seed=int(stated[3]))
    return {"inception_score_mean": found.mean, "inception_score_std": found.deviation}


def _kid(name: str, generated: np.ndarray, real: np.ndarray) -> dict[str, float]:
    if stated := _SUBSETS.fullmatch(name):
        subsets, size, seed = map(int, stated.groups())
        found = distances.kernel_distance(generated, real, subsets=subsets, subset_size=size, seed=seed)
    elif stated := _KERNEL.fullmatch(name):
        gamma = None if stated[2] == "None" else float(stated[2])
        kernel = {"degree": int(stated[1]), "gamma": gamma, "coefficient": float(stated[3])}
        found = distances.kernel_distance(generated, real, **_UNSTATED, **kernel)
    else:
        raise MovaError(f"values.KID.{name} states neither subsets nor a kernel")
    return {"kernel_inception_distance_mean": found.mean, "kernel_inception_distance_std": found.deviation}


CASE = CaseRunner(
    run_set_metrics,
    {
        "mid.fd.*": Bound(1e-6),
        "values.FD.FD_singular": Bound(1e-3, "relative"),
        "values.FD.FD_of_a_set_with_itself": Bound(1e-4, "absolute"),
        "values.FD.*": Bound(1e-6, "relative"),
        "values.KL.*": Bound(1e-6, "relative"),
        "values.IS_split.*": Bound(1e-6, "relative"),
        "values.KID.*": Bound(1e-4, "relative"),
    },
)
