"""Layers whose frozen weight is held in fp8, with an adapter and without: near the original, or refused."""

import pytest
import torch

from mova_engine.adapters.lora import add_lora, lora_parameters, merged_lora
from mova_engine.backend import get_backend
from mova_engine.errors import MovaError
from mova_engine.files.tensors import save_component
from mova_engine.memory.quantised import hold_weights
from mova_engine.models.layers import FeedForward, NormOutput
from mova_engine.models.weight_formats import FP8
from mova_engine.ops import bind, half_products

X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2)).bfloat16()


def _ffn(choices=None):
    torch.manual_seed(1)
    ffn = FeedForward(64, 96, bind(get_backend("cpu"), choices), dtype=torch.bfloat16)
    return ffn.requires_grad_(False)


def _adapted(ffn):
    add_lora(ffn, ["0", "2"], 4, 8.0, torch.Generator().manual_seed(3))
    for name, parameter in lora_parameters(ffn).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return ffn


def _near(found, expected):
    return float((found - expected).float().norm() / expected.float().norm())


@pytest.mark.parametrize("change", [lambda ffn: ffn, _adapted], ids=["plain", "adapted"])
def test_outputs_and_gradients_are_near_the_originals(change):
    results = []
    for held in (False, True):
        ffn = change(_ffn())
        if held:
            assert hold_weights(ffn, FP8, ["0", "2"]) == ["0", "2"]
        x = X.clone().requires_grad_()
        out = ffn(NormOutput(x))
        wanted = [x, *lora_parameters(ffn).values()]
        results.append((out, *torch.autograd.grad(out.float().square().sum(), wanted)))
    for original, found in zip(*results, strict=True):
        assert (found.shape, found.dtype) == (original.shape, original.dtype)
        # Three bits of mantissa in weights, inputs and gradients; two layers.
        assert 0 < _near(found, original) < 0.12


def test_the_weight_takes_one_byte_and_an_adapter_may_come_before_or_after():
    outputs = []
    for first, second in ((_adapted, hold), (hold, _adapted)):
        ffn = second(first(_ffn()))
        assert ffn[0].weight.element_size() == 1 and ffn[0].weight_scale.shape == (96,)
        assert ffn[0].lora_A.weight.dtype == torch.bfloat16
        torch.manual_seed(4)
        for parameter in lora_parameters(ffn).values():
            torch.nn.init.normal_(parameter, std=0.02)
        outputs.append(ffn(NormOutput(X)))
    assert torch.equal(*outputs)


def hold(ffn):
    hold_weights(ffn, FP8, ["0", "2"])
    return ffn


def test_the_feed_forward_goes_through_the_table(monkeypatch):
    """With an adapter, and in training, the bias is added in GELU's pass; else all three are one operator."""
    monkeypatch.setattr(half_products, "SLOW_HERE", False)
    called = []

    def watch(table, name):
        return lambda *inputs, **options: called.append(name) or getattr(table, name)(*inputs, **options)

    table = bind(get_backend("cpu"))
    names = ("linear_gelu", "bias_gelu", "lora_linear", "fp8_linear")
    ffn = FeedForward(64, 96, table.replaced(**{name: watch(table, name) for name in names}), dtype=torch.bfloat16)
    ffn.requires_grad_(False)
    with torch.no_grad():
        ffn(NormOutput(X))
    assert called == ["linear_gelu"]
    for change, expected in (
        (lambda: None, ["bias_gelu"]),
        (lambda: add_lora(ffn, ["0"], 4, 8.0), ["lora_linear", "bias_gelu"]),
        (lambda: hold_weights(ffn, FP8, ["0"]), ["fp8_linear", "bias_gelu"]),
    ):
        change()
        called.clear()
        ffn(NormOutput(X))
        assert called == expected


def test_what_cannot_be_held_is_refused_and_nothing_changed(tmp_path):
    ffn = _ffn()
    ffn[2].requires_grad_(True)
    with pytest.raises(MovaError, match="2 is trainable: only frozen weights"):
        hold_weights(ffn, FP8, ["0", "2"])
    assert ffn[0].weight.dtype == torch.bfloat16
    odd = FeedForward(63, 96, bind(get_backend("cpu"))).requires_grad_(False)
    with pytest.raises(MovaError, match=r"0 is \[96, 63\]: fp8 takes sizes that are multiples of 16 and 16"):
        hold_weights(odd, FP8, ["0"])
    hold_weights(_adapted(ffn.requires_grad_(False)), FP8, ["0"])
    with pytest.raises(MovaError, match="0 is held in fp8 already"):
        hold_weights(ffn, FP8, ["0"])
    with pytest.raises(MovaError, match="quantised weights are not merged in place: 0"), merged_lora(ffn):
        pass
    with pytest.raises(MovaError, match="held quantised, without the scales"):
        save_component({"0.weight": ffn[0].weight}, {}, tmp_path / "model", "Ffn")
