"""GELU behind a product, where the bias is added by GELU's kernel and where it is added by the product."""

import pytest
import torch
import torch.nn.functional as F

from mova_engine.backend import get_backend
from mova_engine.ops import OPERATORS, bind
from mova_engine.ops.declarations import resolve
from mova_engine.ops.fused_linear import Recompute, feed_forward_of, gelu_of_product_of


def fused(x, bias):
    return F.gelu(x + bias, approximate="tanh")


def apart(x, bias):
    raise AssertionError("the product is to add the bias")


apart.of_sum = lambda x: F.gelu(x, approximate="tanh")


def _inputs():
    made = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 5, 8), "up": (24, 8), "up_bias": (24,), "down": (6, 24), "down_bias": (6,)}
    return {
        name: torch.randn(shape, generator=made, dtype=torch.float64).requires_grad_() for name, shape in shapes.items()
    }


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("gelu", [fused, apart])
def test_a_feed_forward_is_its_formula_whoever_adds_the_bias(gelu, compiled, again, monkeypatch):
    given = _inputs()
    h = fused(F.linear(given["x"], given["up"]), given["up_bias"])
    expected = F.linear(h, given["down"], given["down_bias"])
    wanted = torch.autograd.grad(expected.square().sum(), given.values())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    recompute = Recompute(lambda x: x.clone(), (given["x"],), {}) if again else None
    found = feed_forward_of(gelu)(*given.values(), recompute)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), given.values()), wanted)


@pytest.mark.parametrize(("gelu", "adds"), [(fused, False), (apart, True)])
def test_a_product_is_told_what_to_add(gelu, adds):
    given, added = _inputs(), []

    def product(bias):
        added.append(bias)
        return F.linear(given["x"], given["up"], bias)

    found = gelu_of_product_of(gelu)(product, given["up_bias"])
    assert [bias is given["up_bias"] for bias in added] == [adds]
    torch.testing.assert_close(found, fused(F.linear(given["x"], given["up"]), given["up_bias"]))
    assert all(grad is not None for grad in torch.autograd.grad(found.sum(), [given["up"], given["up_bias"]]))


def test_what_an_implementation_has_is_declared():
    ops = bind(get_backend("cpu"))
    assert not hasattr(ops.bias_gelu, "of_sum")
    assert [entry.name for entry in OPERATORS["bias_gelu"].implementations if entry.of_sum] == ["npu"]
    (entry,) = (entry for entry in OPERATORS["bias_gelu"].implementations if entry.of_sum)
    assert callable(resolve(entry.target).of_sum)
