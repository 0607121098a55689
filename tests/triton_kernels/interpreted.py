"""Checks of the Triton kernels that run in Triton's interpreter, on CPU tensors in float32.

Run as a program, with TRITON_INTERPRET=1 set before Triton is imported: that is why the tests start it as a process of
its own; its arguments are the target whose tiles are used, the draws of each case, and the names of the checks (none:
all of them). Prints JSON: {check: what failed, or ""}.
"""

import json
import sys
import traceback
from collections.abc import Callable
from functools import partial

import torch

from mova_engine.ops import OPERATORS, Operator, inputs, resolve
from mova_engine.ops.inputs import Maker
from mova_engine.ops.testing.cases import Case, cases_of
from mova_engine.ops.testing.verify import verify

CPU = torch.device("cpu")
EPS = 1e-6


def _kernels() -> dict[str, str]:
    """{operator: target} of every Triton implementation in the table."""
    entries = ((name, entry) for name, operator in OPERATORS.items() for entry in operator.implementations)
    return {name: entry.target for name, entry in entries if entry.name == "triton"}


def _of_their_own() -> list[str]:
    """The operators that are one kernel; a linear layer with GELU borrows that of bias and GELU."""
    return [name for name, target in _kernels().items() if f".{name}." in target]


def _judge(operator: Operator, target: str, case: Case) -> None:
    findings = verify(operator, resolve(target), case, CPU, torch.float32)
    assert findings
    missed = [str(f) for f in findings if not f.passed]
    assert not missed, "; ".join(missed)


def _inputs(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def _both(name: str, inputs: dict, used: Callable) -> None:
    """Gradients of used(outputs) are the reference's, None where the reference has None."""
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    results = []
    for function in (OPERATORS[name].reference, resolve(_kernels()[name])):
        results.append(torch.autograd.grad(used(function(**inputs)), leaves, allow_unused=True))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if expected is None else expected)


def residual_alone() -> None:
    """The norm of gate_residual_norm may go unused: its gradient is then absent, not garbage."""
    x, y, gate, weight, bias = _inputs((2, 5, 64), (2, 5, 64), (2, 64), (64,), (64,))
    inputs = {"x": x, "y": y, "gate": gate, "weight": weight, "bias": bias, "eps": EPS}
    _both("gate_residual_norm", inputs, lambda outputs: (outputs[0] ** 2).sum())


def norm_alone() -> None:
    x, y, gate, shift, scale = _inputs((2, 5, 64), (2, 5, 64), (2, 64), (2, 64), (2, 64))
    inputs = {"x": x, "y": y, "gate": gate, "shift": shift, "scale": scale, "eps": EPS}
    _both("gate_residual_norm_modulate", inputs, lambda outputs: (outputs[1] ** 2).sum())


def shared_modulation() -> None:
    """One vector [1, d] for all samples, as one timestep for the batch gives; its gradient sums over them."""
    x, y, gate, shift, scale = _inputs((3, 5, 64), (3, 5, 64), (1, 64), (1, 64), (1, 64))
    inputs = {"x": x, "y": y, "gate": gate, "shift": shift, "scale": scale, "eps": EPS}
    _both("gate_residual_norm_modulate", inputs, lambda outputs: (outputs[0] * outputs[1]).sum())


def modulation_rows_of_a_larger_tensor() -> None:
    """The model hands out views of one [b, 6, d] tensor."""
    x, six = _inputs((2, 5, 64), (2, 6, 64))
    for name, used in (("norm_modulate", (0, 1)), ("norm_modulate", (4, 3))):
        shift, scale = (six[:, i] for i in used)
        found = resolve(_kernels()[name])(x, shift, scale, eps=EPS)
        torch.testing.assert_close(found, OPERATORS[name].reference(x, shift, scale, eps=EPS))


def large_mean() -> None:
    """Rows whose mean is 10,000 times their deviation keep their variance: no difference of large sums."""
    (x,) = _inputs((1, 3, 1536))
    x = (x + 1e4).detach()
    weight, bias = torch.ones(1536), torch.zeros(1536)
    found = resolve(_kernels()["layer_norm"])(x, weight, bias, eps=EPS)
    expected = OPERATORS["layer_norm"].reference(x.double(), weight.double(), bias.double(), eps=EPS)
    assert (found - expected).abs().max() < 5e-3


def no_rows() -> None:
    """Zero tokens: empty results, and gradients of vectors that are zero."""
    x, weight = _inputs((2, 0, 64), (64,))
    out = resolve(_kernels()["rms_norm"])(x, weight, eps=EPS)
    assert out.shape == x.shape
    (found,) = torch.autograd.grad(out.sum(), [weight])
    assert torch.equal(found, torch.zeros(64))
    out = resolve(_kernels()["bias_gelu"])(x, weight)
    (found,) = torch.autograd.grad(out.sum(), [weight])
    assert out.shape == x.shape and torch.equal(found, torch.zeros(64))
    values, scale = resolve(_kernels()["quantize_rows"])(x.detach())
    assert values.shape == (2, 0, 64) and scale.shape == (2, 0, 1)


def all_shards_empty() -> None:
    outs, lses = torch.full((2, 1, 3, 1, 16), torch.nan), torch.full((2, 1, 1, 3), -torch.inf)
    out, lse = resolve(_kernels()["merge_lse"])(outs, lses)
    assert torch.equal(out, torch.zeros(1, 3, 1, 16)) and torch.equal(lse, torch.full((1, 1, 3), -torch.inf))


def bfloat16(name: str) -> None:
    """Dtypes are the reference's; values nearly, for the interpreter cuts bfloat16 off where a device rounds."""
    case = next(case for case in cases_of(OPERATORS[name]) if case.name in ("odd-length", "three-shards"))
    results = []
    for function in (OPERATORS[name].reference, resolve(_kernels()[name])):
        inputs = case.make(torch.Generator().manual_seed(0), CPU, torch.bfloat16)
        leaves = [inputs[key].requires_grad_() for key in OPERATORS[name].differentiable]
        outputs = function(**inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        gradients = torch.autograd.grad(sum(x.float().square().sum() for x in outputs), leaves) if leaves else ()
        results.append((*outputs, *gradients))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) * 2**-6)


def registered(name: str) -> None:
    """PyTorch's own judgement of a custom operator: schema, fake implementation, autograd registration, tracing."""
    target = _kernels()[name]
    module = sys.modules[resolve(target).__module__]
    case = next(case for case in cases_of(OPERATORS[name]) if case.name in ("one-token", "three-shards"))
    inputs = case.make(torch.Generator().manual_seed(0), CPU, torch.float32)
    inputs |= {key: inputs[key].requires_grad_() for key in OPERATORS[name].differentiable}
    torch.library.opcheck(getattr(module, f"{name}_fwd"), (), inputs)


def quantized(case: Case) -> None:
    """Scales and values to the bit, but for two faults of the interpreter's conversion: what rounds up to a power of
    two becomes half of it, since the carry does not reach the exponent; and numbers below the normal ones may come out
    smaller. Of these few nothing is asked here, everything on a device.
    """
    inputs = case.make(torch.Generator().manual_seed(0), CPU, torch.float32)
    values, scale = resolve(_kernels()["quantize_rows"])(**inputs)
    expected, expected_scale = OPERATORS["quantize_rows"].reference(**inputs)
    assert torch.equal(scale, expected_scale) and values.dtype == expected.dtype
    found, wanted = (x.view(torch.uint8).int() for x in (values, expected))
    mantissa, exponent = 0b111, 0b1000
    faulty = (wanted & mantissa == 0) & (found == wanted - exponent) | (wanted & 0x7F <= exponent) & (found < wanted)
    assert torch.equal(found.masked_fill(faulty, 0), wanted.masked_fill(faulty, 0))
    assert faulty.float().mean() < 0.1


def refuses(name: str, changed: dict, message: str) -> None:
    case = next(case for case in cases_of(OPERATORS[name]) if case.name in ("odd-length", "odd", "three-shards"))
    inputs = case.make(torch.Generator().manual_seed(0), CPU, torch.float32)
    try:
        resolve(_kernels()[name])(**inputs | {key: change(inputs[key]) for key, change in changed.items()})
    except (TypeError, ValueError) as error:
        assert message in str(error) and name in str(error), error
    else:
        raise AssertionError(f"{name} accepted {sorted(changed)}")


_REFUSALS = (
    ("rms_norm", {"x": torch.Tensor.double}, "x is torch.float64"),
    ("rms_norm", {"weight": lambda w: w[1:]}, "weight must be [256]"),
    ("layer_norm", {"x": lambda x: x[0]}, "x must be [b, s, d]"),
    ("norm_modulate", {"scale": lambda v: v[:2]}, "scale must be [3, 256]"),
    ("gate_residual", {"y": lambda y: y[:, 1:]}, "y must be [3, 13, 256]"),
    ("gate_residual_norm", {"bias": lambda v: v.to("meta")}, "bias is on meta"),
    ("rms_norm_rope", {"cos": lambda c: c[1:]}, "cos and sin must be [s, e/2]"),
    ("rms_norm_rope", {"cos": lambda c: c[:, :60], "sin": lambda c: c[:, :60]}, "divisor of 256"),
    ("bias_gelu", {"bias": lambda b: b[1:]}, "bias must be [256]"),
    ("quantize_rows", {"x": torch.Tensor.double}, "x is torch.float64"),
    ("quantize_rows", {"x": lambda x: x[..., :0]}, "with d > 0"),
    ("linear_gelu", {"weight": lambda w: w[:, 1:]}, "weight must be [o, i] and bias [o]"),
    ("linear_gelu", {"weight": torch.Tensor.bfloat16}, "weight must have x's dtype"),
    ("linear_gelu", {"weight": lambda w: w.to("meta")}, "weight is on meta"),
    ("merge_lse", {"lses": lambda x: x.transpose(2, 3)}, "lses [n, b, h, s]"),
    ("merge_lse", {"lses": torch.Tensor.bfloat16}, "must be float32"),
)


def heads_of_48_channels(interleaved: bool) -> None:
    """Nano's head dim, which is no power of two, with few tokens."""
    build = inputs.rms_norm_rope(interleaved)
    case = Case("heads-of-48", lambda generator, device, dtype: build(Maker(generator, device, dtype), 2, 9, 96, 48))
    _judge(OPERATORS["rms_norm_rope"], _kernels()["rms_norm_rope"], case)


def is_a_repetition(check: str) -> bool:
    """Whether others show the same: every tower's width where the widest is checked, and the rotation of halves in the
    cases that do not differ in how a row is cut.
    """
    halves = check.startswith("rms_norm_rope") and check.endswith("-half")
    return "-audio-width" in check or (halves and check.removesuffix("-half").endswith(("kind", "vectors", "token")))


def checks() -> dict[str, Callable[[], None]]:
    """Every check by name. Without nano's cases: their many tokens cost a minute and show nothing else."""
    found = {
        f"{name}-{case.name}": partial(_judge, OPERATORS[name], target, case)
        for name, target in _kernels().items()
        for case in cases_of(OPERATORS[name])
        if case.size == "test" and not case.name.startswith("nano") and name != "quantize_rows"
    }
    for case in cases_of(OPERATORS["quantize_rows"]):
        if case.size == "test" and not case.name.startswith("nano"):
            found[f"quantize_rows-{case.name}"] = partial(quantized, case)
    found |= {f"registered-{name}": partial(registered, name) for name in _of_their_own()}
    found |= {f"bfloat16-{name}": partial(bfloat16, name) for name in _of_their_own() if name != "quantize_rows"}
    found |= {f"heads-of-48-{mode}": partial(heads_of_48_channels, mode) for mode in (True, False)}
    found |= {f"refusal-{i}-{arguments[0]}": partial(refuses, *arguments) for i, arguments in enumerate(_REFUSALS)}
    edges = (residual_alone, norm_alone, shared_modulation, modulation_rows_of_a_larger_tensor, large_mean, no_rows)
    return found | {edge.__name__: edge for edge in (*edges, all_shards_empty)}


def main(target: str, draws: str, *names: str) -> None:
    from mova_engine.ops.testing import verify as judgement
    from mova_kernels import triton_tiles

    judgement.DRAWS = int(draws)

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    # So few programs that each has several row tiles to add up, as on a device each has many.
    for tiles in triton_tiles.TILES.values():
        tiles |= {name: tile._replace(sums=3, programs=tile.programs and 3) for name, tile in tiles.items()}
    if target == "ascend":
        triton_tiles.TILES["nvidia"] = triton_tiles.TILES["ascend"]
    results = {}
    for name, check in checks().items():
        if names and name not in names:
            continue
        try:
            check()
            results[name] = ""
        except Exception:
            results[name] = "".join(traceback.format_exc(limit=-3))
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
