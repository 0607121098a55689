"""What the operator suite does not ask of `mova_kernels.npu`: autocast, saved memory, guards of NpuFusedAdamW."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, bind, bind_operator
from mova_engine.ops.optimizer_impl import clip_grad_norm_reference
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import verify
from mova_kernels.npu import mindie, norms

pytestmark = pytest.mark.npu
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}


@pytest.fixture
def ops(npu):
    return bind(npu)


@pytest.fixture
def draw(npu):
    """`draw(2, 3)`: normal numbers on the device."""
    generator = torch.Generator().manual_seed(4)
    return lambda *shape, dtype=torch.float32: torch.randn(shape, generator=generator).to(npu.device(), dtype)


def test_attention_follows_autocast(ops, draw):
    q, k, v = draw(1, 5, 2, 16), draw(1, 7, 2, 16, dtype=torch.bfloat16), draw(1, 7, 2, 16)
    with torch.autocast("npu", dtype=torch.bfloat16):
        out, lse = ops.attention_lse(q, k, v)
        assert ops.attention(q, k, v).dtype == out.dtype == torch.bfloat16
        assert all(g.dtype == torch.bfloat16 for g in ops.attention_backward(out.float(), q, k, v, out, lse))
    assert lse.dtype == torch.float32
    exact = ops.attention(q, k.float(), v)
    torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_keep_their_dtype_under_autocast(ops, draw, dtype):
    x, weight, bias, shift = draw(2, 5, 32, dtype=dtype), draw(32), draw(32), draw(2, 32)
    cos, sin = draw(5, 8), draw(5, 8)
    with torch.autocast("npu", dtype=torch.bfloat16):
        found = (
            ops.rms_norm(x, weight, eps=1e-6),
            ops.rms_norm_rope(x, weight, cos, sin, eps=1e-6, interleaved=True),
            ops.layer_norm(x, weight, bias, eps=1e-6),
            ops.norm_modulate(x, shift, shift, eps=1e-6),
            *ops.gate_residual_norm_modulate(x, x, shift, shift, shift, eps=1e-6),
        )
    assert [y.dtype for y in found] == [dtype] * len(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["bias_gelu", "rms_norm_rope"])
def test_float32_is_for_a_few_rows_at_once(npu, draw, monkeypatch, name, dtype):
    """By the judgement of the operator; to the bit what it is of all rows at once; nothing larger is in float32."""
    x, vector, cotangent = draw(2, 50, 48, dtype=dtype).requires_grad_(), draw(48).requires_grad_(), draw(2, 50, 48)
    function, more = getattr(norms, name), {}
    if name == "rms_norm_rope":
        more = {"cos": draw(50, 2), "sin": draw(50, 2), "eps": 1e-6, "interleaved": True}

    def results():
        y = function(x, vector, **more)
        return y, *torch.autograd.grad(y, (x, vector), cotangent.to(dtype))

    whole = results()
    monkeypatch.setattr(norms, "_CHUNK", 48 * 8)
    operator, wide = OPERATORS[name], []
    for case in cases_of(operator):
        if case.size == "test":
            assert not [each for each in verify(operator, function, case, npu.device(), dtype) if not each.passed]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            wide.extend(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.dtype.itemsize == 4)
            return result

    with Sizes():
        chunked = results()
    assert all(torch.equal(a, b) for a, b in zip(whole[:2], chunked[:2], strict=True))
    torch.testing.assert_close(whole[2], chunked[2])
    assert (max(wide) <= 48 * 8) == (dtype == torch.bfloat16)


def test_modulation_keeps_only_narrow_activations(ops, draw):
    x, y = (draw(2, 64, 32, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    vectors = [draw(2, 32).requires_grad_() for _ in range(3)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.gate_residual_norm_modulate(x, y, *vectors, eps=1e-6)
    assert all(t.dtype == torch.bfloat16 for t in saved if t.numel() == x.numel())


def test_mindie_serves_inference_only(npu):
    for name in ("norm_modulate", "gate_residual_norm_modulate"):
        with pytest.raises(MovaError, match="'mindie' cannot serve: has no gradient"):
            bind(npu, {name: "mindie"})


def test_a_mindie_that_does_not_import_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "mindiesd", None)
    assert mindie.unavailable().startswith("mindiesd does not import (import of mindiesd halted")


@pytest.fixture
def npu_fused(npu):
    """(weights, an NpuFusedAdamW of them)."""
    make, _ = bind_operator(OPERATORS["adamw"], npu, "npu-fused")
    torch.manual_seed(2)
    weights = [torch.nn.Parameter(torch.randn(shape).to(npu.device())) for shape in ((5, 3), (7,))]
    return weights, make(weights, **ADAMW)


def _set_gradients(weights, scale: float = 1.0) -> list[torch.Tensor]:
    for weight in weights:
        weight.grad = weight.detach().clone() * scale
    return [weight.grad for weight in weights]


def test_fused_clipping_is_the_reference_s(npu_fused):
    weights, optimizer = npu_fused
    for _ in range(2):  # the second gradients are new tensors, which NpuFusedAdamW alone would not see
        expected = [g.clone() for g in _set_gradients(weights, 3.0)]
        norm = clip_grad_norm_reference(expected, 1.0)
        assert float(optimizer.clip_grad_norm_fused_(1.0)) == pytest.approx(float(norm), rel=1e-6)
        for weight, grad in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.grad, grad)
        optimizer.step()


def test_gradients_of_other_weights_are_refused(npu_fused):
    weights, optimizer = npu_fused
    _set_gradients(weights)
    optimizer.step()
    _set_gradients(weights)
    weights[0].grad = None
    with pytest.raises(RuntimeError, match=r"same weights in every step; torch.optim.AdamW\(fused=True\) takes it"):
        optimizer.step()
