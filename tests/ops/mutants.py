"""Mutants of the operators' references, made by rule, for the judgement that must find each of them wrong.

    python tests/ops/mutants.py [--op NAME ...] [--dtype NAME ...] [--share 1.0] [--seed 0]

prints for each operator and dtype how many mutants there are, how many are killed, how many change nothing, and
those that live; and in which dtypes an operator has no implementation, so that there is nothing to judge. Rules act in
three places: on the operator's arguments, on each of PyTorch's operations beneath the reference, forward and in the
backward (composite ones taken apart), and on results and gradients as such.

A mutant that passes is excused only where a check shows that there is nothing to find: its bits are the reference's in
every case; in float64 it computes the truth to 1e-9, so that it is the same mathematics in another order; in float64
no row of any result moves by more than `unseen(slack)` of the noise there; or it rounds an intermediate result, and in
no tensor of any case is it further from the truth than the reference is in the same dtype (root mean squares over all
draws, and what chance leaves of those; two mutants are named, for which three roundings stand beside two).
"""

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ops.mutation_rules import ARGUMENT_RULES, OPERATION_RULES, RESULT_RULES, Place

from mova_engine.ops import OPERATORS, Operator
from mova_engine.ops.testing.cases import Case, cases_of
from mova_engine.ops.testing.verify import Trial, judge, results, trials

CPU = torch.device("cpu")
_aten = torch.ops.aten
_TAKEN_APART = get_decompositions(
    [
        _aten.native_layer_norm,
        _aten.native_layer_norm_backward,
        _aten.gelu,
        _aten.gelu_backward,
        _aten._softmax,
        _aten._softmax_backward_data,
        _aten.logsumexp,
    ]
)

# Where the reference rounds a gradient twice, and a mutant rounds what becomes of it once more: the norm's part of the
# gradient of r = x + gate * y (error v1, a mean square) is added to that of r itself, and the sum rounded (v2). These
# mutants round the difference of which rstd makes the norm's part: by v1 again, for a factor leaves relative errors as
# they are, and where in its octave a number lies is chance. The parts are independent, so that the sum is the larger
# (v2 >= v1), and all of it at most (2 v1 + v2) / (v1 + v2) <= 3/2 of the reference's own error: below the square of the
# slack, 1.56, which every implementation is allowed. In bfloat16 the case "every-kind" finds them.
_TWICE_ROUNDED = {
    ("gate_residual_norm", torch.float16): (
        ("aten.sub.Tensor", 2, "rounded to half precision"),
        ("aten.mul.Tensor", 6, "operand 1 rounded to half precision"),
    )
}

# Operators that convert numbers of which they then take the norm alone: in whatever order these are, it is the same. In
# float64, where nothing is converted, this does not show.
_IN_ANY_ORDER = ("clip_grad_norm",)


def unseen(slack: float) -> float:
    """How far a row may move, in units of its noise: with the noise itself, to which that adds as squares do, the row
    is then off by `slack`, which every implementation is allowed. Further off none may be, and no mutant is excused.
    """
    return math.sqrt(slack**2 - 1)


@dataclass(frozen=True)
class Mutant:
    """`rule` applied at a place: ("argument" or "result", name) or ("forward" or "backward", operation, occurrence)."""

    where: tuple
    rule: str

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.where))}: {self.rule}"


@dataclass
class Operations(TorchDispatchMode):
    """Numbers PyTorch's operations while the reference or its backward runs, and changes the result of one."""

    dtype: torch.dtype
    mutant: Mutant | None = None
    counts: Counter = field(default_factory=Counter)
    seen: dict[tuple, Place] = field(default_factory=dict)
    forward: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        backward = torch._C._current_autograd_node() is not None
        if not (backward or self.forward):
            return function(*args, **kwargs)
        where = ("backward" if backward else "forward", str(function), self.counts[backward, function])
        self.counts[backward, function] += 1
        place = Place(function, args, kwargs, self.dtype)
        if self.mutant and self.mutant.where == where:
            fits, _ = rule = OPERATION_RULES[self.mutant.rule]
            # In another case the operation of that number may be one that the rule does not fit.
            return place.changed(rule) if fits(place) else place.call()
        if function in _TAKEN_APART:
            with self:
                made = _TAKEN_APART[function](*args, **kwargs)
        else:
            made = function(*args, **kwargs)
        if self.mutant is None and Place.wide(made):
            self.seen[where] = place
        return made

    def watching(self, operator: Operator) -> Callable[..., Any]:
        """The operator's reference, whose operations count."""

        def reference(*args: Any, **kwargs: Any) -> Any:
            self.counts.clear()
            self.forward = True
            try:
                made = operator.reference(*args, **kwargs)
            finally:
                self.forward = False
            if operator.kind == "optimizer":
                step = made.step

                def watched() -> None:
                    self.forward = True
                    step()
                    self.forward = False

                made.step = watched
            return made

        return reference


def mutants_of(operator: Operator, dtype: torch.dtype, cases: list[Case]) -> list[Mutant]:
    """Every mutant that a rule makes at a place which some case reaches."""
    found: dict[Mutant, None] = {}
    for case in cases:
        inputs = case.make(torch.Generator().manual_seed(0), CPU, dtype)
        for name in inputs:
            for rule, (fits, _) in ARGUMENT_RULES.items():
                if fits(inputs, name, dtype, operator):
                    found[Mutant(("argument", name), rule)] = None
        trial = next(trials(operator, case, CPU, dtype))
        with Operations(dtype) as mode:
            made = results(operator, mode.watching(operator), trial)
        for where, place in mode.seen.items():
            found |= {Mutant(where, rule): None for rule, (fits, _) in OPERATION_RULES.items() if fits(place)}
        for name, x in made.items():
            found |= {Mutant(("result", name), rule): None for rule, (fits, _) in RESULT_RULES.items() if fits(x)}
    return list(found)


def run(operator: Operator, mutant: Mutant, trial: Trial, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the mutant makes of a trial."""
    kind, *where = mutant.where
    if kind == "argument":
        _, change = ARGUMENT_RULES[mutant.rule]
        if trial.inputs[where[0]] is None:
            return results(operator, operator.reference, trial)

        def changed(**inputs: Any) -> Any:
            return operator.reference(**(inputs | change(inputs, where[0], dtype)))

        if operator.kind != "function":
            made = change(trial.inputs, where[0], dtype)
            return results(operator, operator.reference, replace(trial, inputs=trial.inputs | made))
        return results(operator, changed, trial)
    if kind == "result":
        made = results(operator, operator.reference, trial)
        if where[0] in made:
            made[where[0]] = RESULT_RULES[mutant.rule][1](made[where[0]])
        return made
    with Operations(dtype, mutant) as mode:
        return results(operator, mode.watching(operator), trial)


@dataclass
class Bench:
    """The cases of an operator in one dtype, made once for all its mutants; small ones first."""

    operator: Operator
    dtype: torch.dtype
    # Default: all of the operator's small ones.
    of: tuple[Case, ...] | None = None
    errors: dict[Mutant, str] = field(default_factory=dict)
    plain: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    # The first draw of a case, in float64.
    exact: dict[Case, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen = cases_of(self.operator) if self.of is None else self.of
        cases = [case for case in chosen if case.size == "test"]
        self.made = {case: list(trials(self.operator, case, CPU, self.dtype)) for case in cases}
        size = {c: sum(x.truth.numel() for x in t[0].noise.values()) for c, t in self.made.items()}
        self.cases = sorted(cases, key=size.get)

    def verdict(self, mutant: Mutant) -> str:
        """ "killed", why it need not be, "does not run" or "LIVES"."""
        made: dict[Case, list[tuple[Trial, dict[str, Tensor]]]] = {}
        try:
            for case in self.cases:
                made[case] = [(trial, run(self.operator, mutant, trial, self.dtype)) for trial in self.made[case]]
                if any(not finding.passed for finding in judge(self.operator, made[case])):
                    return "killed"
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            self.errors[mutant] = str(error).splitlines()[0]
            return "does not run"
        pairs = [pair for each in made.values() for pair in each]
        if all(_same_bits(x, self._plain(mutant, t)[name]) for t, found in pairs for name, x in found.items()):
            return "same bits"
        if self.operator.name in _IN_ANY_ORDER and mutant.rule.startswith("shifted") and "_to_copy" in mutant.where[1]:
            return "same mathematics"
        if not _of_halves(mutant):
            moved, of_noise = self._moved(mutant)
            if moved <= 1e-9:
                return "same mathematics"
            if of_noise <= unseen(self.operator.slack):
                return "below the noise"
        twice = mutant.where[0] == "backward" and (*mutant.where[1:], mutant.rule) in _TWICE_ROUNDED.get(
            (self.operator.name, self.dtype), ()
        )
        if _rounds(mutant) and all(self._harmless(each, 1.5 if twice else 1) for each in made.values()):
            return "harmless rounding"
        return "LIVES"

    def _plain(self, mutant: Mutant, trial: Trial) -> dict[str, Tensor]:
        """The reference as such mutants run it: with composite operations taken apart, which round otherwise."""
        if mutant.where[0] in ("argument", "result"):
            return trial.expected
        if id(trial) not in self.plain:
            with Operations(self.dtype) as mode:
                self.plain[id(trial)] = results(self.operator, mode.watching(self.operator), trial)
        return self.plain[id(trial)]

    def _moved(self, mutant: Mutant) -> tuple[float, float]:
        """By how much the mutant in float64 moves the row that it moves most: as a share of it, and of its noise."""
        most = of_noise = 0.0
        for case in self.cases:
            if case not in self.exact:
                self.exact[case] = next(trials(self.operator, case, CPU, torch.float64))
            exact, trial = self.exact[case], self.made[case][0]
            for name, x in run(self.operator, mutant, exact, torch.float64).items():
                if x.numel() == 0:
                    continue
                noise = exact.noise[name]
                error, truth = noise.error(x), noise.truth.where(noise.weight.bool(), 0)
                size = truth.norm(dim=-1).clamp(min=1e-12 * max(1e-30, float(truth.abs().max())))
                most = max(most, float((error.norm(dim=-1) / size).nan_to_num(math.inf).max()))
                of_noise = max(of_noise, float(trial.noise[name].rows(error).nan_to_num(math.inf).max()))
        return most, of_noise

    def _harmless(self, made: list[tuple[Trial, dict[str, Tensor]]], times: float) -> bool:
        """Whether a case has results no further from the truth, in any tensor, than `times` (of mean squares) what the
        reference is or is expected to be: but for twice the deviation of a mean square of that many elements; or of
        that many rows where the operator rounds factors of a product, for these are shared by the elements of a row: of
        few keys, five in the case "odd-length", the softmax weights and the numerators that the forms round may lie on
        grids that differ by more.
        """
        squares: dict[str, list[float]] = {}
        for trial, results_of_draw in made:
            for name, x in results_of_draw.items():
                noise = trial.noise[name]
                own = max(float(e.square().sum()) for e, _ in noise.forms)
                ours, usual = float(noise.error(x).square().sum()), float((noise.variance * noise.weight).sum())
                independent = float(noise.weight.sum()) / (max(noise.row, 1) if self.operator.rounded else 1)
                found = (ours, max(own, usual), independent)
                squares[name] = [a + b for a, b in zip(squares.get(name, (0, 0, 0)), found, strict=True)]
        return all(ours <= usual * times * (1 + 2 * (2 / max(n, 1)) ** 0.5) for ours, usual, n in squares.values())


def _of_halves(mutant: Mutant) -> bool:
    """Whether there is nothing in float64 that the mutant would change, which therefore cannot say what it does."""
    return mutant.where[1].startswith("aten._to_copy") or mutant.rule in ("truncated", "last bit cleared")


def _rounds(mutant: Mutant) -> bool:
    return "rounded" in mutant.rule or mutant.rule == "truncated"


def _same_bits(x: Tensor | None, y: Tensor | None) -> bool:
    if x is None or y is None:
        return x is y
    return x.dtype == y.dtype and torch.equal(*(z.reshape(-1).view(torch.uint8) for z in (x, y)))


def dtypes_of(operator: Operator) -> list[torch.dtype]:
    """In which an implementation may exist."""
    names = {name for entry in operator.implementations for name in entry.dtypes}
    return [getattr(torch, name) for name in ("float32", "bfloat16", "float16") if name in names]


def not_offered() -> dict[str, list[str]]:
    """Operators of which no implementation exists in some dtypes, and these dtypes: there is nothing to judge."""
    every = (torch.float32, torch.bfloat16, torch.float16)
    absent = {n: [str(d)[6:] for d in every if d not in dtypes_of(o)] for n, o in OPERATORS.items()}
    return {name: dtypes for name, dtypes in absent.items() if dtypes}


def campaign(
    operator: Operator, dtype: torch.dtype, share: float, seed: int, bench: Bench | None = None
) -> Iterator[tuple[Mutant, str]]:
    """Mutants of an operator, a random share of them, and what becomes of each."""
    bench = bench or Bench(operator, dtype)
    mutants = mutants_of(operator, dtype, bench.cases)
    chosen = random.Random(f"{seed} {operator.name} {dtype}").sample(mutants, math.ceil(share * len(mutants)))
    for mutant in chosen:
        yield mutant, bench.verdict(mutant)


def main() -> int:
    """Print the table; the exit status says whether a mutant lives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="*", default=list(OPERATORS))
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants, drawn at random (default all)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lives = 0
    excuses = ("same bits", "same mathematics", "below the noise", "harmless rounding", "does not run")
    print(
        f"{'operator':28} {'dtype':9} {'mutants':>7} {'killed':>7} " + " ".join(f"{e:>17}" for e in excuses), "  live"
    )
    absent = not_offered()
    for operator in (OPERATORS[name] for name in args.op):
        for name in absent.get(operator.name, ()):
            if name in args.dtype:
                print(f"{operator.name:28} {name:9} not offered: no implementation is made for it")
        for dtype in dtypes_of(operator):
            name = str(dtype).removeprefix("torch.")
            if name not in args.dtype:
                continue
            bench = Bench(operator, dtype)
            verdicts = list(campaign(operator, dtype, args.share, args.seed, bench))
            count = Counter(verdict for _, verdict in verdicts)
            columns = " ".join(f"{count[e]:17}" for e in excuses)
            row = f"{operator.name:28} {name:9} {len(verdicts):7} {count['killed']:7} {columns} {count['LIVES']:6}"
            print(row, flush=True)
            lives += count["LIVES"]
            for mutant, verdict in verdicts:
                if verdict in ("LIVES", "does not run"):
                    print(f"    {verdict.lower()}: {mutant} {bench.errors.get(mutant, '')}", flush=True)
    return int(lives > 0)


if __name__ == "__main__":
    sys.exit(main())
