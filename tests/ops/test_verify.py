"""The judgement itself: what is wrong must fail it."""

import pytest
import torch
import torch.nn.functional as F

from mova_engine.ops import OPERATORS
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import verify

CPU = torch.device("cpu")


def _case(name, case):
    operator = OPERATORS[name]
    return operator, next(c for c in cases_of(operator) if c.name == case)


def _failed(operator, function, case, dtype=torch.float32):
    return {f.tensor for f in verify(operator, function, case, CPU, dtype) if not f.passed}


def test_half_rotation_for_interleaved_fails():
    operator, case = _case("rms_norm_rope", "nano")

    def wrong(**inputs):
        return operator.reference(**inputs | {"interleaved": not inputs["interleaved"]})

    assert "out0" in _failed(operator, wrong, case)


def test_sigmoid_gelu_for_tanh_gelu_fails():
    operator, case = _case("linear_gelu", "nano")

    def wrong(x, weight, bias):
        y = torch.nn.functional.linear(x, weight, bias)
        return y * torch.sigmoid(1.702 * y)

    assert "out0" in _failed(operator, wrong, case)


@pytest.mark.parametrize("broken", ["x", "weight"])
def test_right_values_with_a_wrong_gradient_fail(broken):
    operator, case = _case("rms_norm", "odd-length")

    def wrong(**inputs):
        return operator.reference(**inputs | {broken: inputs[broken].detach()}) + 0 * inputs[broken].sum()

    assert _failed(operator, wrong, case) == {f"grad.{broken}"}


def test_a_lost_gradient_fails():
    operator, case = _case("norm_modulate", "nano")

    def wrong(**inputs):
        return operator.reference(**inputs | {"shift": inputs["shift"].detach()})

    assert "grad.shift" in _failed(operator, wrong, case)


def test_a_different_dtype_fails():
    operator, case = _case("gate_residual", "nano")
    assert "out0" in _failed(operator, lambda **i: operator.reference(**i).float(), case, torch.bfloat16)


def test_nan_from_an_empty_shard_fails():
    operator, case = _case("merge_lse", "empty-shard")

    def wrong(outs, lses):
        lse = torch.logsumexp(lses, 0)
        return (torch.exp(lses - lse).transpose(-1, -2).unsqueeze(-1) * outs).sum(0), lse

    assert "out0" in _failed(operator, wrong, case)


def test_the_reference_passes_its_own_judgement():
    operator, case = _case("attention", "self")
    assert not _failed(operator, operator.reference, case, torch.bfloat16)


def _changed(name, **changes):
    """The operator's reference with arguments changed, each a value or a function of the one given."""

    def wrong(**inputs):
        new = {k: change(inputs[k]) if callable(change) else change for k, change in changes.items()}
        return OPERATORS[name].reference(**inputs | new)

    return wrong


def _statistics_in_half(x, weight, eps):
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps).bfloat16()
    return (x.float() * rstd.float() * weight.float()).to(x.dtype)


def _one_pass_variance(x, weight, bias, eps):
    wide = x.float()
    mean = wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt((wide.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0) + eps)
    return ((wide - mean) * rstd * weight.float() + bias.float()).to(x.dtype)


def _scaled(name, factor):
    return lambda **inputs: OPERATORS[name].reference(**inputs) * factor


def _lse_in_half(q, k, v):
    out, lse = OPERATORS["attention_lse"].reference(q, k, v)
    return out, lse.bfloat16().float()


HALF = torch.bfloat16
WRONG = {
    "1% too large": ("rms_norm", "one-token", _scaled("rms_norm", 1.01)),
    "0.3% too large": ("rms_norm", "nano", _scaled("rms_norm", 1.003)),
    "eps 1e-2": ("rms_norm", "nano", _changed("rms_norm", eps=1e-2)),
    "eps 1e-5": ("rms_norm", "every-kind", _changed("rms_norm", eps=1e-5)),
    "no eps for a row of zeros": ("rms_norm", "every-kind", _changed("rms_norm", eps=0.0)),
    "no eps for a row of a constant": ("norm_modulate", "every-kind", _changed("norm_modulate", eps=0.0)),
    "statistics in half precision": ("rms_norm", "nano", _statistics_in_half),
    "variance as a difference": ("layer_norm", "every-kind", _one_pass_variance),
    "rounded modulation": ("norm_modulate", "nano", _changed("norm_modulate", scale=lambda x: x.bfloat16())),
    "rounded shift": ("norm_modulate", "nano", _changed("norm_modulate", shift=lambda x: x.bfloat16())),
    "rounded gate": ("gate_residual", "nano", _changed("gate_residual", gate=lambda x: x.bfloat16())),
    "rounded rotation": ("rms_norm_rope", "nano", _changed("rms_norm_rope", cos=lambda x: x.bfloat16())),
    "erf for tanh": ("linear_gelu", "tail", lambda x, weight, bias: F.gelu(F.linear(x, weight, bias))),
    "softmax 0.3% too sharp": ("attention", "sharp", _changed("attention", q=lambda q: q.float() * 1.003)),
    "log-sum-exp in half precision": ("attention_lse", "self", _lse_in_half),
}


@pytest.mark.parametrize("dtype", [torch.float32, HALF, torch.float16], ids=str)
@pytest.mark.parametrize("what", WRONG)
def test_what_half_precision_could_hide_fails(what, dtype):
    name, case, wrong = WRONG[what]
    operator, case = _case(name, case)
    assert _failed(operator, lambda **inputs: _as_reference(operator, wrong, inputs), case, dtype)


def _as_reference(operator, function, inputs):
    """A result in the dtype that the operator gives: the dtype is not what is wrong."""
    out = function(**inputs)
    return out if isinstance(out, tuple) else out.to(inputs[next(iter(inputs))].dtype)


def _tiled_attention(q, k, v):
    """As fused kernels do it: tiles of 16 keys, weights rounded relative to the largest so far, float32 sums."""
    (q, k, v), dtype = (x.float().transpose(1, 2) for x in (q, k, v)), q.dtype
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    largest = torch.full_like(scores[..., :1], -torch.inf)
    total, out = torch.zeros_like(largest), torch.zeros_like(q)
    for tile, values in zip(scores.split(16, -1), v.split(16, -2), strict=True):
        new = torch.maximum(largest, tile.amax(-1, keepdim=True))
        weights, old = torch.exp(tile - new), torch.exp(largest - new)
        total, out = total * old + weights.sum(-1, keepdim=True), out * old + weights.to(dtype).float() @ values
        largest = new
    return (out / total).transpose(1, 2).to(dtype), (largest + total.log()).squeeze(-1)


@pytest.mark.parametrize("dtype", [torch.float32, HALF, torch.float16], ids=str)
def test_a_kernel_that_rounds_where_it_must_passes(dtype):
    operator = OPERATORS["attention_lse"]
    for case in cases_of(operator):
        if case.size == "test" and not case.name.startswith("no-"):
            assert not _failed(operator, _tiled_attention, case, dtype), case.name
