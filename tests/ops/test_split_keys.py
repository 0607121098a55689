"""Attention of few queries to many keys: when keys are split, and that values and gradients are those of the whole."""

import pytest
import torch

from mova_engine.backend import get_backend
from mova_engine.ops import OPERATORS, bind, split_keys
from mova_engine.ops.attention_impl import flash_cpu_backward, flash_cpu_lse, sdpa

REFERENCE = OPERATORS["attention"].reference


def _qkv(b, s, n, h=2, e=16):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(b, t, h, e, generator=generator).requires_grad_() for t in (s, n, n)]


@pytest.mark.parametrize(
    ("queries", "keys", "chunks"),
    [
        (403, 43120, 16),
        (403, 176400, 16),
        (43120, 43120, 1),
        (43120, 512, 1),
        (13, 240, 1),
        (3, 2051, 2),
        (100, 1599, 1),
    ],
)
def test_keys_are_split_where_they_are_many_for_each_query(queries, keys, chunks):
    assert split_keys.chunks_for(queries, keys) == chunks


@pytest.mark.parametrize("keys", [2048, 3073, 5001])
@pytest.mark.parametrize("batch", [1, 3])
def test_values_and_gradients_are_those_of_the_whole(batch, keys):
    assert split_keys.chunks_for(7, keys) > 1
    inputs, cotangent = _qkv(batch, 7, keys), torch.randn(batch, 7, 2, 16)
    results = []
    for attention in (split_keys.cpu, REFERENCE):
        out = attention(*inputs)
        results.append((out, *torch.autograd.grad(out, inputs, cotangent)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


def test_the_merged_log_sum_exp_is_that_of_the_whole():
    q, k, v = _qkv(2, 5, 4100)
    out, lse = split_keys.merged_attention(flash_cpu_lse, q, k, v, 4)
    expected = OPERATORS["attention_lse"].reference(q, k, v)
    torch.testing.assert_close((out, lse), tuple(x.detach() for x in expected), rtol=1e-5, atol=2e-6)


def test_the_gradient_is_one_backward_over_all_keys_and_elsewhere_torch_is_asked():
    called = []

    def backward(dout, q, k, v, out, lse):
        called.append(k.shape[1])
        return flash_cpu_backward(dout, q, k, v, out, lse)

    attention = split_keys.split_keys(lambda *qkv: called.append("whole") or sdpa(*qkv), flash_cpu_lse, backward)
    attention(*_qkv(1, 7, 3000)).sum().backward()
    attention(*_qkv(1, 7, 100)).sum().backward()
    assert called == [3000, "whole"]


def test_a_gradient_of_a_gradient_is_refused():
    inputs = _qkv(1, 3, 2048)
    (gradient,) = torch.autograd.grad(split_keys.cpu(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_table_binds_it_by_name():
    # In float32 alone: half precision is refused where instruction sets limit torch below oneDNN.
    table = bind(get_backend("cpu"), {"attention": "split-keys"}, dtypes={torch.float32})
    assert table.attention is split_keys.cpu
