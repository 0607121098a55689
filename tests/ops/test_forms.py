"""Linear layers that compute their inputs again: the same numbers as the plain ones, and less kept."""

import pytest
import torch
import torch.nn.functional as F

from mova_engine.ops import bind
from mova_engine.ops.fused_linear import Recompute

B, S, D, H = 2, 37, 48, 96


def _leaf(*shape, dtype=torch.float64):
    return (torch.randn(*shape, dtype=dtype) * shape[-1] ** -0.5).requires_grad_()


def _norm(x, weight, *, eps):
    return F.layer_norm(x, x.shape[-1:], weight, None, eps)


def _kept(run, *parameters) -> list[torch.Tensor]:
    """Distinct tensors that autograd keeps during `run`, parameters left out."""
    kept, owned = {}, {p.data_ptr() for p in parameters}

    def pack(x):
        if x.data_ptr() not in owned:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return list(kept.values())


@pytest.fixture
def reference(backend):
    return bind(backend, "reference")


@pytest.mark.parametrize("recipe", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_layers_of_one_input_equal_the_plain_ones(reference, recipe, biases):
    x, gamma = _leaf(B, S, D), _leaf(D)
    weights = [_leaf(o, D) for o in (D, 32, 16)]
    offsets = [_leaf(o) if biases else None for o in (D, 32, 16)]
    leaves = [x, gamma, *weights, *(t for t in offsets if t is not None)]
    cotangents = [torch.randn(B, S, o, dtype=torch.float64) for o in (D, 32, 16)]
    normed = _norm(x, gamma, eps=1e-6)
    again = Recompute(_norm, (x, gamma), {"eps": 1e-6}) if recipe else None
    found = reference.shared_linear(normed, weights, offsets, again)
    expected = [F.linear(normed, w, b) for w, b in zip(weights, offsets, strict=True)]
    torch.testing.assert_close(list(found), expected, rtol=0, atol=0)
    both = [torch.autograd.grad(list(out), leaves, cotangents, retain_graph=True) for out in (found, expected)]
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recipe", [True, False])
def test_feed_forward_equals_the_plain_one(reference, recipe):
    x, gamma = _leaf(B, S, D), _leaf(D)
    up, up_bias, down, down_bias = _leaf(H, D), _leaf(H), _leaf(D, H), _leaf(D)
    normed = _norm(x, gamma, eps=1e-6)
    again = Recompute(_norm, (x, gamma), {"eps": 1e-6}) if recipe else None
    found = reference.feed_forward(normed, up, up_bias, down, down_bias, again)
    expected = F.linear(F.gelu(F.linear(normed, up, up_bias), approximate="tanh"), down, down_bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    cotangent, leaves = torch.randn_like(found), [x, gamma, up, up_bias, down, down_bias]
    both = [torch.autograd.grad(out, leaves, cotangent, retain_graph=True) for out in (found, expected)]
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-12)


def test_no_tokens_give_empty_results_and_zero_gradients(reference):
    """A process may have none where a clip has fewer tokens than processes share it."""
    x = torch.empty(B, 0, D, dtype=torch.float64, requires_grad=True)
    up, up_bias, down, down_bias = _leaf(H, D), _leaf(H), _leaf(D, H), _leaf(D)
    hidden = reference.feed_forward(x, up, up_bias, down, down_bias)
    first, second = reference.shared_linear(hidden, (up, up), (up_bias, None))
    assert hidden.shape == x.shape and first.shape == second.shape == (B, 0, H)
    gradients = torch.autograd.grad((first, second), (x, up, up_bias, down, down_bias), (first, second))
    assert gradients[0].shape == x.shape and not any(g.any() for g in gradients)


def test_neither_the_norms_output_nor_gelus_is_kept(reference):
    x, gamma = _leaf(B, S, D), _leaf(D)
    up, up_bias, down, down_bias = _leaf(H, D), _leaf(H), _leaf(D, H), _leaf(D)
    value = x * 1
    with torch.no_grad():
        normed = _norm(value, gamma, eps=1e-6)
    normed.requires_grad_()
    again = Recompute(_norm, (value, gamma), {"eps": 1e-6})
    kept = _kept(
        lambda: reference.feed_forward(normed * 1, up, up_bias, down, down_bias, again), up, up_bias, down, gamma
    )
    assert sorted(tuple(t.shape) for t in kept) == [(B, S, D), (B, S, H)]
    assert any(t.data_ptr() == value.data_ptr() for t in kept)
    kept = _kept(lambda: reference.shared_linear(normed * 1, [up], [up_bias], again), up, gamma)
    assert [t.data_ptr() for t in kept] == [value.data_ptr()]


def test_frozen_weights_need_no_input(reference):
    x, weight = _leaf(B, S, D), _leaf(H, D).detach()
    assert not _kept(lambda: reference.shared_linear(x * 1, [weight], [None]), weight)
    (out,) = reference.shared_linear(x, [weight], [None])
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    torch.testing.assert_close(gradient, (torch.ones(B, S, H, dtype=torch.float64) @ weight))


def test_a_gradient_of_a_gradient_is_refused(reference):
    x, weight = _leaf(B, S, D), _leaf(H, D)
    (out,) = reference.shared_linear(x, [weight], [None])
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_form_follows_its_operator_unless_it_is_given_too(reference):
    x = [_leaf(B, S, D), _leaf(H, D), _leaf(H), _leaf(D, H), _leaf(D)]
    changed = reference.replaced(bias_gelu=lambda x, bias: x + bias)
    torch.testing.assert_close(changed.feed_forward(*x), F.linear(F.linear(*x[:3]), *x[3:]))
    given = reference.replaced(bias_gelu=lambda x, bias: x, feed_forward=reference.feed_forward)
    assert given.feed_forward is reference.feed_forward
