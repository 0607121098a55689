"""Trained linear layers with fp8 products: their numbers, how far these are off, and what they leave as it is."""

import pytest
import torch
from models.test_compile import compiled
from models.test_towers import AUDIO, VIDEO, build, forward, gradients_of, inputs

from mova_engine.backend import get_backend
from mova_engine.config.recipes import load_config
from mova_engine.errors import MovaError
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.fp8_products import NOT_MEASURED, Fp8Products
from mova_engine.models.layers import FeedForward, Linear, NormOutput, ResidualStream
from mova_engine.ops import bind
from mova_engine.ops.fp8_trained_impl import fp8_trained_linear_reference, scaled_mm
from mova_engine.train.fp8_watch import use_fp8

IMPLEMENTATIONS = [(fp8_trained_linear_reference, torch.float32), (scaled_mm, torch.bfloat16)]


def rounded(x):
    """Rows of x in e4m3 with a scale each, as float64."""
    scale = x.float().abs().amax(1, keepdim=True) / 448
    return (x.float() / scale).to(torch.float8_e4m3fn).double() * scale.double()


def drawn(dtype, tokens=37):
    """x [2, tokens, 96] of tokens of very different size, weight [64, 96], bias, the output's gradient."""
    g = torch.Generator().manual_seed(7)
    x, weight, bias, grad = (torch.randn(*s, generator=g) for s in ((2, tokens, 96), (64, 96), (64,), (2, tokens, 64)))
    sizes = torch.logspace(-3, 3, tokens)[:, None]
    return [t.to(dtype).requires_grad_() for t in (x * sizes, weight / 10, bias)], (grad / sizes).to(dtype)


def off(found, exact):
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize(("function", "dtype"), IMPLEMENTATIONS, ids=["emulated", "torch's product"])
@pytest.mark.parametrize("tokens", [37, 32, 1])
def test_products_and_gradients_are_those_of_the_quantised_numbers(function, dtype, tokens):
    """In float64, from the same numbers of 8 bits; of tokens there may be any number."""
    (x, weight, bias), g = drawn(dtype, tokens)
    out = function(x, weight, bias)
    found = (out, *torch.autograd.grad(out, (x, weight, bias), g))
    rows, grads = x.detach().flatten(0, 1), g.flatten(0, 1)
    expected = (
        rounded(rows) @ rounded(weight.detach()).t() + bias.detach().double(),
        rounded(grads) @ rounded(weight.detach().t()).t(),
        rounded(grads.t()) @ rounded(rows.t()).t(),
        grads.double().sum(0),
    )
    for ours, truth in zip(found, expected, strict=True):
        assert ours.dtype == dtype and off(ours.view_as(truth), truth) < (1e-6 if dtype == torch.float32 else 3e-3)


@pytest.mark.parametrize(("function", "dtype"), IMPLEMENTATIONS, ids=["emulated", "torch's product"])
def test_every_token_and_every_output_is_off_by_what_four_bits_are(function, dtype):
    """Tokens differ by six decades: a scale for the whole tensor would leave nothing of the small ones. The gradient of
    the weight, a sum over tokens, suffers where activations are small just where gradients are large.
    """
    (x, weight, _), opposed = drawn(dtype)
    even = torch.randn(opposed.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    of_weight = []
    for g in (even, opposed):
        out = function(x, weight, None)
        dx, dweight = torch.autograd.grad(out, (x, weight), g)
        exact = torch.nn.functional.linear(x.double(), weight.double())
        exact_dx, exact_dweight = torch.autograd.grad(exact, (x, weight), g.double())
        for found, truth in ((out, exact), (dx, exact_dx)):
            rows = zip(found.flatten(0, 1), truth.flatten(0, 1), strict=True)
            assert 0.02 < off(found, truth) < 0.05 and max(off(*each) for each in rows) < 0.06
        of_weight.append(off(dweight, exact_dweight))
    assert 0.01 < of_weight[0] < 0.05 and of_weight[1] > 0.1


def test_what_the_product_cannot_take_is_refused():
    (x, weight, bias), _ = drawn(torch.bfloat16)
    for given, message in (
        ((x.float(), weight, bias), "x is torch.float32; this implementation takes bfloat16"),
        ((x, weight[:, :90], bias), "x must be"),
        ((x, weight[:60], bias[:60]), r"multiples of 16, got \[60, 96\]; keep this layer in bfloat16"),
        ((x, weight, bias.float()), "bias is torch.float32"),
    ):
        with pytest.raises(MovaError, match=message):
            scaled_mm(*given)


def test_while_comparing_a_layer_computes_in_its_own_dtype_and_tells_how_far_fp8_is_off():
    (x, weight, bias), g = drawn(torch.float32)
    products, ops = Fp8Products(), bind(get_backend("cpu"))
    products.comparing = True
    out = products.product(ops, x, weight, bias)
    found = torch.autograd.grad(out, (x, weight, bias), g)
    plain = torch.nn.functional.linear(x, weight, bias)
    exact = torch.autograd.grad(plain, (x, weight, bias), g)
    assert torch.equal(out, plain)
    for ours, truth in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, truth)
    fp8 = fp8_trained_linear_reference(x, weight, None)
    beside = (fp8, *torch.autograd.grad(fp8, (x, weight), g))
    truth = (plain - bias, *exact[:2])
    wanted = [off(a, b) for a, b in zip(beside, truth, strict=True)]
    assert products.deviations.tolist() == pytest.approx(wanted, rel=1e-3)
    # The largest of several backwards; without a gradient of the input nothing of it can be off.
    first = products.deviations.clone()
    products.product(ops, x.detach(), weight, bias).backward(g)
    assert torch.equal(products.deviations, first)
    products.forget()
    products.product(ops, x.detach(), weight, bias).backward(torch.zeros_like(g))
    assert products.deviations.tolist()[1:] == [0.0, NOT_MEASURED] and products.deviations[0] > 0.01
    products.forget()
    products.product(ops, x, weight * torch.inf, bias).backward(g)
    assert products.deviations.isinf().any()


def _in_fp8(backend, dtype=torch.float32):
    """The tiny model with fp8 products in all layers that fit."""
    ops = bind(backend, {"fp8_trained_linear": "reference"})
    model = build(ops, backend).to(dtype)
    use_fp8(load_config("nano", fp8={"products": "emulated"}), model, ops)
    return model


def test_layers_that_fit_are_those_of_blocks_and_bridge_by_their_sizes(backend):
    layers = {name: x.fp8 for name, x in _in_fp8(backend).named_modules() if isinstance(x, Linear)}
    assert AUDIO.ffn_dim % 16 and not VIDEO.ffn_dim % 16
    plain = {name for name, fp8 in layers.items() if fp8 is None}
    assert plain == {f"audio_dit.blocks.{i}.ffn.{j}" for i in range(AUDIO.num_layers) for j in (0, 2)}
    assert all("blocks." in name or "conditioners." in name for name in layers)
    assert len({id(fp8) for fp8 in layers.values() if fp8 is not None}) == len(layers) - len(plain)


def test_without_gradients_nothing_is_in_fp8(backend):
    """As validation and samples have it, and whoever reads the checkpoint."""
    model, args = _in_fp8(backend), inputs(backend)
    with torch.no_grad():
        found = forward(model, args)
        expected = forward(build(bind(backend), backend), args)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(forward(model, args)[0], expected[0])


@pytest.mark.parametrize("policy", ["full", "selective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_bit_of_fp8_gradients(backend, policy, dtype):
    model, args = _in_fp8(backend, dtype), inputs(backend)
    plain = gradients_of(model, args)
    found = gradients_of(model, args, runner=layer_runner(policy))
    assert plain.keys() == found.keys()
    assert not [name for name in plain if not torch.equal(plain[name], found[name])]
    exact = gradients_of(build(bind(backend), backend).to(dtype), args)
    moved = [off(plain[name], exact[name]) for name in exact if ".ffn.0.weight" in name and "video" in name]
    assert len(moved) == VIDEO.num_layers and all(0.01 < each < 0.5 for each in moved)


def test_a_feed_forward_in_chunks_gives_each_token_the_same(backend):
    ops = bind(backend, {"fp8_trained_linear": "reference"})
    ffn = FeedForward(32, 48, ops)
    for layer in (ffn[0], ffn[2]):
        layer.fp8 = Fp8Products()
    x = torch.randn(1, 300, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole, chunked = ffn(NormOutput(x)), ffn(NormOutput(x), chunk_rows=128)
    assert torch.equal(whole, chunked)
    gradients = [torch.autograd.grad(out.square().sum(), (x, ffn[0].weight)) for out in (whole, chunked)]
    assert torch.equal(gradients[0][0], gradients[1][0])
    # A chunk's scales are those of its own tokens.
    assert 0 < off(gradients[1][1], gradients[0][1]) < 0.1


@pytest.mark.long
def test_a_block_with_fp8_products_is_one_graph(backend):
    tower = _in_fp8(backend).video_dit
    rope = tower.rope((2, 2, 3), backend.device())
    stream, t_mod, context = torch.randn(2, 12, VIDEO.dim), torch.randn(2, 6, VIDEO.dim), torch.randn(2, 5, VIDEO.dim)

    def block(x):
        return tower.blocks[1](ResidualStream(x), t_mod, context, rope).settle(tower.ops)

    run, counter = compiled(block)
    weights = list(tower.blocks[1].self_attn.parameters())
    found, expected = (torch.autograd.grad(each(stream).square().sum(), weights) for each in (run, block))
    assert counter.graphs == 1
    for ours, plain in zip(found, expected, strict=True):
        assert off(ours, plain) < 0.02


def test_a_device_without_fp8_products_is_refused_and_so_are_layers_that_do_not_fit(backend):
    ops = bind(get_backend("cpu"), dtypes=(torch.bfloat16,))
    config = load_config("nano", dtype="bfloat16", fp8={"products": "device"})
    with pytest.raises(
        MovaError, match=r"this cpu has no fp8 products \(.*scaled-mm runs on cuda, not on cpu.*emulated"
    ):
        use_fp8(config, build(ops, backend), ops)
