"""Fit of the cost model: four achieved rates of one device, to few measured steps, with a prior on each.

x = logarithms of factors on the achieved GEMM, attention, memory and link rates of hardware.toml; prior x ~ N(0, C),
C diagonal. A measured step says log(seconds) = log(predicted(x)) + noise. The most probable x is found by Gauss-Newton:
x <- C J' (J C J' + R)^-1 (y - f(x) + J x), with J the derivatives of the predicted logarithms. With fewer rows than
factors the prior decides what the rows leave open, and a factor that no row depends on stays where it was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from mova_engine.predict.hardware import Hardware, get_hardware
from mova_engine.predict.published import CALIBRATED, ROWS, PublishedRow
from mova_engine.predict.step_time import predict

# Factor -> standard deviation of its logarithm before anything was measured. Kernels are known within some 15-20%; what
# a collective library reaches of its links is hardly known at all.
PRIOR = {"gemm": 0.2, "attention": 0.15, "bandwidth": 0.2, "link": 0.7}
# Standard deviation of log(measured / predicted): rounding of published figures, and costs that the model omits.
_NOISE = 0.03
_ITERATIONS, _STEP = 8, 1e-4


@dataclass(frozen=True)
class Fit:
    """factors: on each achieved rate. hardware: the device with the factors applied."""

    factors: dict[str, float]
    hardware: Hardware


@cache
def calibrated(name: str) -> Hardware:
    """A device by name, with fitted rates if there are published rows of it."""
    hardware = get_hardware(name)
    return fit(hardware, [row for row in ROWS if row.fitted]).hardware if name == CALIBRATED else hardware


def predicted_seconds(row: PublishedRow, hardware: Hardware) -> float:
    """The predicted seconds of a row's step."""
    prediction = predict(row.run, hardware)
    return prediction.seconds - (0 if row.optimizer else prediction.parts["optimizer"])


def fit(hardware: Hardware, rows: Sequence[PublishedRow]) -> Fit:
    """The most probable factors given the rows; all 1 without rows."""
    names = list(PRIOR)
    x = [0.0] * len(names)
    for _ in range(_ITERATIONS if rows else 0):
        logs = _logs(hardware, rows, names, x)
        slopes = []
        for i in range(len(names)):
            moved = [value + _STEP * (i == j) for j, value in enumerate(x)]
            slopes.append([(b - a) / _STEP for a, b in zip(logs, _logs(hardware, rows, names, moved), strict=True)])
        variance = [PRIOR[name] ** 2 for name in names]
        n = range(len(rows))
        weighted = list(zip(variance, slopes, strict=True))
        system = [[float(sum(v * s[a] * s[b] for v, s in weighted)) for b in n] for a in n]
        for a in n:
            system[a][a] += _NOISE**2
        missing = [
            math.log(rows[a].seconds) - logs[a] + sum(s[a] * value for s, value in zip(slopes, x, strict=True))
            for a in n
        ]
        weights = solve(system, missing)
        x = [v * sum(s[a] * weights[a] for a in n) for v, s in zip(variance, slopes, strict=True)]
    factors = {name: math.exp(value) for name, value in zip(names, x, strict=True)}
    return Fit(factors, hardware.with_achieved(**factors))


def leave_one_out(hardware: Hardware, rows: Sequence[PublishedRow]) -> dict[str, float]:
    """Each row's seconds as predicted by a fit to the others."""
    return {
        row.name: predicted_seconds(row, fit(hardware, [other for other in rows if other is not row]).hardware)
        for row in rows
    }


def _logs(hardware: Hardware, rows: Sequence[PublishedRow], names: list[str], x: list[float]) -> list[float]:
    factors = {name: math.exp(value) for name, value in zip(names, x, strict=True)}
    scaled = hardware.with_achieved(**factors)
    return [math.log(predicted_seconds(row, scaled)) for row in rows]


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x with matrix x = right, for a symmetric positive definite matrix (elimination needs no pivoting there)."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    n = len(rows)
    for i in range(n):
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][j] * x[j] for j in range(i + 1, n))) / rows[i][i]
    return x
