"""torch.compile takes a layer, and the whole forward, as one graph, forward and backward."""

import dataclasses

import pytest
import torch
from models.test_towers import AUDIO, BRIDGE, TINY, VIDEO, build, forward, gradients_of, inputs

from mova_engine.adapters.lora import add_lora
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.layers import ResidualStream
from mova_engine.ops import bind

TWO_LAYERS = dataclasses.replace(
    TINY, video=dataclasses.replace(VIDEO, num_layers=2), bridge=dataclasses.replace(BRIDGE, visual_layers=2)
)

ONE_LAYER = dataclasses.replace(
    TINY,
    video=dataclasses.replace(VIDEO, num_layers=1),
    audio=dataclasses.replace(AUDIO, num_layers=1),
    bridge=dataclasses.replace(BRIDGE, visual_layers=1, audio_layers=1),
)


class OneGraph:
    """A backend that counts graphs and hands them on to AOTAutograd, which traces the backward too."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module, example_inputs):
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(module, example_inputs)


def compiled(function, **options):
    counter = OneGraph()
    torch._dynamo.reset()
    return torch.compile(function, backend=counter, fullgraph=True, **options), counter


def _model(backend, table, dtype, adapters, config=TWO_LAYERS):
    model = build(bind(backend, table), backend, config).to(dtype)
    if adapters:
        model.requires_grad_(False)
        add_lora(model, ("q", "k", "v", "o", "ffn.0", "ffn.2"), 2, alpha=2.0)
    return model


def _close(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp_min(1e-6)
        assert (found[name] - gradient).abs().max() / scale < (1e-4 if gradient.dtype == torch.float32 else 0.05), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "dtype", "adapters"),
    [
        (None, torch.float32, False),
        (None, torch.bfloat16, True),
        ("reference", torch.float32, True),
        ("reference", torch.bfloat16, False),
    ],
)
def test_the_forward_of_all_layers_is_one_graph(backend, table, dtype, adapters):
    model, args = _model(backend, table, dtype, adapters), inputs(backend)
    expected = gradients_of(model, args)
    run, counter = compiled(lambda *args: forward(model, args))
    model.zero_grad(set_to_none=True)
    video, audio = run(*args)
    (video.square().sum() + audio.square().sum()).backward()
    _close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected)
    assert counter.graphs == 1


def _streams(*sizes):
    """A stream with a pending update for each (channels, tokens)."""
    return [
        ResidualStream(*(torch.randn(2, tokens, dim).requires_grad_() for _ in range(2)), torch.randn(2, dim))
        for dim, tokens in sizes
    ]


def _graphs(function, streams, trained=()):
    """How many; compiled, results and gradients of streams and parameters must be those of the function itself."""
    leaves = [*(x for stream in streams for x in (stream.x, stream.y)), *trained]
    run, counter = compiled(function)
    found = []
    for each in (function, run):
        outputs = [x for stream in each(*streams) for x in (stream.x, stream.y)]
        found.append((outputs, torch.autograd.grad([x.square().sum() for x in outputs], leaves)))
    for ours, plain in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(list(ours), list(plain), rtol=1e-4, atol=1e-4)
    return counter.graphs


@pytest.mark.long
@pytest.mark.parametrize("adapters", [False, True])
def test_a_block_is_one_graph(backend, adapters):
    tower = _model(backend, None, torch.float32, adapters).video_dit
    rope = tower.rope((2, 2, 3), backend.device())
    t_mod, context = torch.randn(2, 6, VIDEO.dim), torch.randn(2, 5, VIDEO.dim)
    trained = [p for p in tower.blocks[1].parameters() if p.requires_grad]
    streams = _streams((VIDEO.dim, 12))
    assert _graphs(lambda stream: (tower.blocks[1](stream, t_mod, context, rope),), streams, trained) == 1


@torch.no_grad()
def test_the_blocks_of_both_experts_are_one_graph_without_gradients(backend):
    model = _model(backend, None, torch.float32, False, dataclasses.replace(TWO_LAYERS, experts=2))
    run, counter = compiled(lambda block, *args: block(*args))
    rope = model.video_dit.rope((2, 2, 3), backend.device())
    x, t_mod, context = torch.randn(2, 12, VIDEO.dim), torch.randn(2, 6, VIDEO.dim), torch.randn(2, 5, VIDEO.dim)
    for tower in (model.video_dit, model.video_dit_2):
        for block in tower.blocks:
            found, expected = (
                each(block, ResidualStream(x), t_mod, context, rope).settle(tower.ops)
                for each in (run, lambda block, *args: block(*args))
            )
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert counter.graphs == 1


@pytest.mark.long
def test_a_bridge_layer_is_one_graph(backend):
    bridge, grid = _model(backend, None, torch.float32, False).dual_tower_bridge, (2, 2, 3)
    rope = bridge.rope(grid, 7, 24.0, backend.device())
    conditioners = (bridge.audio_to_video_conditioners["1"], bridge.video_to_audio_conditioners["1"])
    trained = [p for each in conditioners for p in each.parameters()]
    streams = _streams((VIDEO.dim, 12), (AUDIO.dim, 7))
    assert _graphs(lambda *streams: bridge(1, *streams, rope, grid), streams, trained) == 1


def test_a_break_is_noticed():
    def broken(x):
        torch._dynamo.graph_break()
        return x + 1

    run, _ = compiled(broken)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        run(torch.ones(2))


@pytest.mark.parametrize(
    ("policy", "config"),
    [
        pytest.param("full", TWO_LAYERS, marks=pytest.mark.slow, id="full"),
        pytest.param("selective", TWO_LAYERS, marks=pytest.mark.slow, id="selective, two layers"),
        pytest.param("selective", ONE_LAYER, marks=pytest.mark.long, id="selective"),
    ],
)
def test_a_checkpointed_forward_compiles(backend, policy, config):
    model, args = _model(backend, None, torch.float32, False, config), inputs(backend)
    expected = gradients_of(model, args)
    runner = layer_runner(policy)
    run, counter = compiled(lambda *args: forward(model, args, runner=runner))
    model.zero_grad(set_to_none=True)
    video, audio = run(*args)
    (video.square().sum() + audio.square().sum()).backward()
    _close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected)
    assert counter.graphs == 1
