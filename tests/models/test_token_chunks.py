"""Work in chunks of tokens (`memory.chunking rows`): the same values and gradients, with the memory of one chunk."""

import pytest
import torch
from models.test_towers import build, forward, gradients_of, inputs
from rows_alone import rows_are_alone
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mova_engine.adapters.lora import add_lora
from mova_engine.config.recipes import load_config
from mova_engine.errors import MovaError
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.layers import FeedForward, NormOutput, ResidualStream
from mova_engine.models.modality import modalities
from mova_engine.models.mova import ForwardInputs
from mova_engine.models.token_chunks import in_token_chunks
from mova_engine.models.weight_formats import FORMATS
from mova_engine.ops import bind

DIM, HIDDEN, TOKENS, ROWS = 64, 192, 700, 512


@pytest.fixture
def ops(backend):
    return bind(backend)


def feed_forward(ops, backend, dtype, kind):
    """All weights trained, or those of adapters, on plain or quantised weights."""
    torch.manual_seed(0)
    layer = FeedForward(DIM, HIDDEN, ops, device=backend.device(), dtype=dtype)
    if kind != "full":
        layer.requires_grad_(False)
        for i, linear in enumerate((layer[0], layer[2])):
            linear.lora_A = torch.nn.Linear(linear.in_features, 4, bias=False, device=backend.device(), dtype=dtype)
            linear.lora_B = torch.nn.Linear(4, linear.out_features, bias=False, device=backend.device(), dtype=dtype)
            linear.lora_scale = 0.5 + i
        if kind in FORMATS:
            for linear in (layer[0], layer[2]):
                linear.hold(FORMATS[kind], FORMATS[kind].quantise(linear.weight.detach()))
    return layer


def run(layer, x, cotangent, rows):
    leaf = x.detach().requires_grad_()
    out = layer(NormOutput(leaf), rows)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return out.detach(), *torch.autograd.grad(out, [leaf, *trained], cotangent)


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["full", "adapters", "int8", "nf4"])
def test_values_and_the_inputs_gradient_are_equal_to_the_bit(ops, backend, dtype, kind):
    """Gradients of weights are sums in another order: as near to those of float64 as without chunks."""
    layer = feed_forward(ops, backend, dtype, kind)
    x, cotangent = (torch.randn(2, TOKENS, DIM, device=backend.device(), dtype=dtype) for _ in range(2))
    (value, dx, *whole), (chunked, dx_chunked, *chunks) = (run(layer, x, cotangent, rows) for rows in (None, ROWS))
    assert torch.equal(chunked, value) and torch.equal(dx_chunked, dx)
    with torch.no_grad():
        assert torch.equal(layer(NormOutput(x), ROWS), layer(NormOutput(x)))
    if kind in ("full", "adapters"):
        wide = feed_forward(bind(backend, "reference"), backend, dtype, kind).double()
        exact = run(wide, x.double(), cotangent.double(), None)[2:]
        # Each of three chunks is rounded, and their sum, where the whole is rounded once.
        assert all(error(b, e) <= 3 * error(a, e) for a, b, e in zip(whole, chunks, exact, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sums_over_chunks_are_rounded_once(dtype):
    """The gradient of a weight that each of 512 tokens has added to it. In bfloat16 256 + 1 would be 256."""
    weight, x = torch.zeros(1, dtype=dtype, requires_grad=True), torch.zeros(1, 512, 1, dtype=dtype)
    out = in_token_chunks(lambda x, _: x + weight, x, 1, (weight,))
    (found,) = torch.autograd.grad(out, weight, torch.ones_like(out))
    assert found.dtype == dtype and found.item() == 512


def test_tokens_are_told_which_they_are():
    table = torch.arange(700.0)
    x = torch.zeros(2, 700, 1)
    found = in_token_chunks(lambda x, tokens: x + table[tokens].view(1, -1, 1), x, 300)
    assert torch.equal(found[..., 0], table.expand(2, -1))


class _Largest(TorchDispatchMode):
    """The most tokens of any tensor of the hidden width."""

    tokens = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and HIDDEN in x.shape]
        self.tokens = max([self.tokens, *(x.numel() // HIDDEN for x in made if x.numel() % HIDDEN == 0)])
        return out


@pytest.mark.parametrize("rows, expected", [(None, 2 * TOKENS), (ROWS, ROWS)])
def test_hidden_activations_are_those_of_a_chunk(ops, backend, rows, expected):
    layer = feed_forward(ops, backend, torch.float32, "adapters")
    x = torch.randn(2, TOKENS, DIM, device=backend.device())
    with _Largest() as largest:
        run(layer, x, x, rows)
    assert largest.tokens == expected


@pytest.mark.parametrize("policy", ["none", "full", "selective"])
@pytest.mark.parametrize("trained", ["full", "adapters"])
def test_a_model_in_chunks(backend, policy, trained):
    """Layers that are checkpointed, with bridge and sound: everything but sums over tokens to the bit. Of adapters of
    rank 2 a product with five rows is another kernel of the CPU's library than one with twelve.
    """
    model, args = build(bind(backend, "reference"), backend), inputs(backend)
    if trained == "adapters":
        model.requires_grad_(False)
        add_lora(model, ("q", "ffn.0", "ffn.2"), 2, alpha=2.0, generator=torch.Generator().manual_seed(0))
    plain = gradients_of(model, args)
    found = gradients_of(model, args, runner=layer_runner(policy, policy != "none"), chunk_rows=10)
    assert plain.keys() == found.keys()
    differ = {name for name in plain if not torch.equal(plain[name], found[name])}
    summed = all(".ffn." in name or ".norm_" in name for name in differ)
    assert differ and (trained == "adapters" or summed or not rows_are_alone()), differ
    # What all of the backward rounds otherwise is of the size of what goes through it, not of what cancels at its end.
    largest = 1.0 if rows_are_alone() else max(float(x.abs().max()) for x in plain.values())
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6 * largest)
    with torch.no_grad():
        torch.testing.assert_close(forward(model, args, chunk_rows=10), forward(model, args), rtol=1e-5, atol=1e-6)


def test_a_model_s_own_setting_reaches_its_layers(ops, backend):
    model, args = build(ops, backend), inputs(backend)
    model.chunk_rows = 10
    seen = []
    block = model.video_dit.blocks[0]
    block.ffn.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    with torch.no_grad():
        model(*modalities(*args))
        model.forward_side_by_side([ForwardInputs(*modalities(*args))])
    assert seen == [10, 10]


def test_sound_alone_has_too_few_tokens():
    with pytest.raises(MovaError, match="memory.chunking rows is for the many tokens of video"):
        load_config("audio-pretrain", memory={"chunking": "rows"})


def test_without_gradients_a_stream_is_freed_when_it_has_served(ops, backend):
    """By whoever holds it: the caller's tensors are gone, and using it again is an error."""
    x, y = (torch.randn(1, 6, 32, device=backend.device()) for _ in range(2))
    kept = ResidualStream(x, y)
    kept.settle(ops)
    assert torch.equal(kept.x, x), "a backward may need it"
    with torch.no_grad():
        spent = ResidualStream(x, y)
        spent.settle(ops)
    with pytest.raises(AttributeError):
        spent.settle(ops)
