"""Distances between sets of clips, from features of a network: Frechet distance, KL, kernel distance, inception score.

Features and logits are arrays [clips, dimensions]; all sums run in float64. Sources: Frechet distance: Heusel et al.
2017 (arXiv 1706.08500); KID: Binkowski et al. 2018 (arXiv 1801.01401); inception score: Salimans et al. 2016 (arXiv
1606.03498). The options reproduce what av-benchmark and MOVA's evaluation compute.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mova_engine.errors import MovaError

Array = NDArray[np.float64]
# Added to probabilities within logarithms of MOVA's inception score.
_IS_EPSILON = 1e-10
_LOGIT_CLAMP = 1e-8


def moments(features: ArrayLike) -> tuple[Array, Array]:
    """Mean [d] and covariance [d, d] (divided by n - 1) of features [n, d]. MovaError below two clips."""
    x = _table(features, "features", least=2)
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))


def frechet_distance(generated: ArrayLike, real: ArrayLike) -> float:
    """|mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of two sets of features [n, d] and [m, d].

    With C1 = A'A and C2 = B'B the trace of the root is the sum of the singular values of A B', so that no root of a
    singular covariance is taken: a set's distance to itself is 0 within rounding at any number of clips. A and B are
    shortened by a QR decomposition where there are more clips than dimensions. The distance is biased upwards where n
    or m is not far above d.
    """
    mean1, factor1 = _mean_and_factor(generated)
    mean2, factor2 = _mean_and_factor(real)
    if mean1.shape != mean2.shape:
        raise MovaError(f"the sets have features of {len(mean1)} and {len(mean2)} dimensions")
    trace_of_root = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    difference = mean1 - mean2
    return float(difference @ difference + (factor1**2).sum() + (factor2**2).sum() - 2 * trace_of_root)


def _mean_and_factor(features: ArrayLike) -> tuple[Array, Array]:
    """Mean [d], and A [min(n, d), d] with A'A the covariance (divided by n - 1). MovaError below two clips."""
    x = _table(features, "features", least=2)
    mean = x.mean(0)
    centred = (x - mean) / np.sqrt(len(x) - 1)
    return mean, centred if len(x) <= x.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def kl_divergence(real_logits: ArrayLike, generated_logits: ArrayLike) -> float:
    """Mean over clips of KL(real || generated) between the softmax of paired logits [n, classes], in nats."""
    real, generated = _paired(real_logits, generated_logits)
    log_p, log_q = _log_softmax(real), _log_softmax(generated)
    return float((np.exp(log_p) * (log_p - log_q)).sum() / len(real))


def kl_sigmoid(real_logits: ArrayLike, generated_logits: ArrayLike) -> float:
    """av-benchmark's `kl_sigmoid`: p (log p - log q) summed over independent classes, mean over clips.

    It lacks the terms of the complements, so it is no divergence and can be negative.
    """
    real, generated = _paired(real_logits, generated_logits)
    log_p, log_q = -np.logaddexp(0, -real), -np.logaddexp(0, -generated)
    return float((np.exp(log_p) * (log_p - log_q)).sum() / len(real))


def probabilities_of_outputs(clipwise: ArrayLike) -> Array:
    """MOVA's distribution over classes from outputs of a sigmoid [n, classes]: softmax of log(p) - log(1 - p).

    As in its `IS.py`, outputs are clamped to 1e-8 .. 1 - 1e-8 in float32, where the upper bound is 1: an output of
    exactly 1 gives a row of NaN.
    """
    p = np.asarray(clipwise, np.float32).clip(np.float32(_LOGIT_CLAMP), np.float32(1 - _LOGIT_CLAMP))
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = (np.log(p) - np.log(np.float32(1) - p)).astype(np.float64)
        return np.exp(_log_softmax(logits))


def softmax_of_logits(logits: ArrayLike) -> Array:
    """Distributions over classes [n, classes] from logits, in float64."""
    return np.exp(_log_softmax(_table(logits, "logits", least=1)))


def inception_score(probabilities: ArrayLike) -> float:
    """exp of the mean KL of each clip's distribution [n, classes] to their mean: one split, as MOVA publishes it."""
    p = _table(probabilities, "probabilities", least=1)
    return float(np.exp((p * (np.log(p + _IS_EPSILON) - np.log(p.mean(0) + _IS_EPSILON))).sum(1).mean()))


@dataclass(frozen=True)
class MeanAndDeviation:
    """A figure's mean and population standard deviation over its parts."""

    mean: float
    deviation: float


def split_inception_score(
    logits: ArrayLike, splits: int = 10, *, shuffle: bool = True, seed: int = 2020
) -> MeanAndDeviation:
    """av-benchmark's inception score: logits [n, classes] are shuffled by RandomState(seed) and cut into splits."""
    x = _table(logits, "logits", least=splits)
    if shuffle:
        x = x[np.random.RandomState(seed).permutation(len(x))]
    log_p = _log_softmax(x)
    scores = []
    for i in range(splits):
        part = log_p[i * len(x) // splits : (i + 1) * len(x) // splits]
        p = np.exp(part)
        scores.append(np.exp((p * (part - np.log(p.mean(0)))).sum(1).mean()))
    return MeanAndDeviation(float(np.mean(scores)), float(np.std(scores)))


def kernel_distance(
    generated: ArrayLike,
    real: ArrayLike,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    gamma: float | None = None,
    coefficient: float = 1.0,
    seed: int = 2020,
) -> MeanAndDeviation:
    """KID: the unbiased squared maximum mean discrepancy under a polynomial kernel, over random subsets.

    The kernel is (x.y gamma + coefficient)^degree; gamma None is 1 / dimension. subset_size is lowered to the smaller
    set; each subset is drawn without replacement by RandomState(seed), of the generated clips first.
    """
    x, y = _table(generated, "features", least=2), _table(real, "features", least=2)
    size = min(subset_size, len(x), len(y))
    scale = 1 / x.shape[1] if gamma is None else gamma
    drawn = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        a, b = x[drawn.choice(len(x), size, replace=False)], y[drawn.choice(len(y), size, replace=False)]
        found.append(_unbiased_mmd(*((left @ right.T * scale + coefficient) ** degree for left, right in _pairs(a, b))))
    return MeanAndDeviation(float(np.mean(found)), float(np.std(found)))


def _pairs(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    yield from ((a, a), (b, b), (a, b))


def _unbiased_mmd(k_aa: Array, k_bb: Array, k_ab: Array) -> float:
    n = len(k_aa)
    within = (k_aa.sum() - np.trace(k_aa) + k_bb.sum() - np.trace(k_bb)) / (n * (n - 1))
    return float(within - 2 * k_ab.mean())


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _paired(real: ArrayLike, generated: ArrayLike) -> tuple[Array, Array]:
    a, b = _table(real, "logits", least=1), _table(generated, "logits", least=1)
    if a.shape != b.shape:
        raise MovaError(f"pairs need equal sets of logits, got {list(a.shape)} and {list(b.shape)}")
    return a, b


def _table(values: ArrayLike, what: str, least: int) -> Array:
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or len(x) < least:
        raise MovaError(f"{what} must be [n, d] with n >= {least}, got {list(x.shape)}")
    return x
