"""What layers keep for the backward on the host: the same gradients to the bit, flat memory; and, on a device whose
clock the test moves and whose copies run late, no memory that is given back too early.
"""

import weakref
from functools import partial

import pytest
import torch
from models.test_towers import TINY, build, forward, gradients_of, inputs
from torch.utils.checkpoint import checkpoint

from mova_engine.adapters import add_lora, lora_parameters
from mova_engine.backend import get_backend
from mova_engine.errors import MovaError
from mova_engine.memory import host_offload
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.memory.host_offload import ActivationArena
from mova_engine.ops import bind

MM = frozenset({torch.ops.aten.mm.default})
LAYERS, SIDE = 24, 8
BYTES = SIDE * SIDE * 4


def poisoned(policy, offload=True):
    runner = layer_runner(policy, offload, offload_saved=True)
    runner.arena = ActivationArena(poison=True)
    return runner


@pytest.mark.parametrize("trained", ["all", "adapters"])
@pytest.mark.parametrize(("policy", "dtype", "offload"), [("selective", "float32", True), ("out", "bfloat16", False)])
def test_gradients_are_those_of_what_is_kept_on_the_device(backend, policy, dtype, offload, trained):
    """To the bit, whichever expert, step after step in the same memory, which is NaN before it is used again."""
    model, args = build(bind(backend), backend).to(getattr(torch, dtype)), inputs(backend)
    if trained == "adapters":
        model.requires_grad_(False)
        add_lora(model, ("q", "o", "ffn.2"), 2, 4.0, torch.Generator().manual_seed(0))
        for index, parameter in enumerate(lora_parameters(model).values()):
            torch.nn.init.normal_(parameter, generator=torch.Generator(backend.device()).manual_seed(index))
    runner, sizes = poisoned(policy, offload), []
    for expert in (0, 1, 0, 1):
        plain = gradients_of(model, args, expert=expert, runner=layer_runner(policy))
        found = gradients_of(model, args, expert=expert, runner=runner)
        assert plain.keys() == found.keys() and len(plain) > 4
        assert not [name for name in plain if not torch.equal(plain[name], found[name])]
        sizes.append(runner.arena.report())
    tokens, video, audio = (2 * 12, 2 * 12 * TINY.video.dim, 2 * 7 * TINY.audio.dim)
    width, lse = getattr(torch, dtype).itemsize, tokens * TINY.video.num_heads * 4
    kept = TINY.video.num_layers * (video * width + lse)
    if not offload:
        # The attentions' outputs and log-sum-exps alone.
        assert [each.to_host for each in sizes] == [kept * (step + 1) for step in range(4)]
    else:
        assert sizes[0].to_host > kept + TINY.video.num_layers * video * width + audio * width
    assert len({each.host_bytes for each in sizes}) == 1 and sizes[0].host_bytes == sizes[0].to_host


def test_attention_is_not_run_again(ops_counted, backend):
    ops, calls = ops_counted
    model = build(ops, backend)
    gradients_of(model, inputs(backend), runner=poisoned("selective"))
    assert len(calls) == TINY.video.num_layers


@pytest.fixture
def ops_counted(backend):
    ops, calls = bind(backend), []

    def counted(q, k, v):
        calls.append(1)
        return ops.attention_lse(q, k, v)

    return ops.replaced(attention_lse=counted), calls


def test_clips_of_another_size_do_not_add_to_the_memory():
    backend = get_backend("cpu")
    model, runner = build(bind(backend), backend), poisoned("selective")
    sizes = []
    for batch in (1, 2, 1, 2, 1):
        gradients_of(model, inputs(backend, batch), runner=runner)
        sizes.append(runner.arena.report().host_bytes)
    assert sizes[1] < 2.2 * sizes[0] and sizes[2:] == sizes[1:2] * 3, sizes


def test_a_forward_without_its_backward_leaves_nothing_behind():
    backend = get_backend("cpu")
    model, args, runner = build(bind(backend), backend), inputs(backend), poisoned("selective")
    expected = gradients_of(model, args, runner=layer_runner("selective"))
    forward(model, args, runner=runner)
    size = runner.arena.report().host_bytes
    found = gradients_of(model, args, runner=runner)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert runner.arena.report().host_bytes == size


@pytest.mark.parametrize("policy", ["none", "full"])
def test_results_that_nobody_keeps_are_refused(policy):
    with pytest.raises(MovaError, match=f"checkpointing {policy} keeps no results for the host"):
        layer_runner(policy, offload_saved=True)


class Event:
    def __init__(self, stream, at, count):
        self.stream, self.at, self.count = stream, at, count


class Stream:
    """`now`: when it has done all that it was given. Its copies run when somebody waits for them: `late` holds them,
    with no claim on their tensors.
    """

    def __init__(self):
        self.now, self.late, self.given = 0.0, [], 0

    def record_event(self):
        return Event(self, self.now, self.given)

    def wait_event(self, event):
        self.now = max(self.now, event.at)
        while event.stream.late and event.stream.given - len(event.stream.late) < event.count:
            target, source = (x() for x in event.stream.late.pop(0))
            assert target is not None and source is not None, "memory was given back before its copy had run"
            target.copy_(source)

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


class Clocked(ActivationArena):
    """Its copies take as many seconds as `SECONDS` says of a tensor, and run when they are waited for."""

    def __init__(self, seconds):
        super().__init__(poison=True)
        self._stream, self.seconds = Stream(), seconds

    def copy(self, target, source):
        stream = self._stream
        stream.now += self.seconds
        stream.given += 1
        target.fill_(torch.nan)
        stream.late.append((weakref.ref(target), weakref.ref(source)))


@pytest.fixture
def computing(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(host_offload.torch.accelerator, "current_stream", lambda device=None: stream)
    return stream


def run(arena, computing, kept=True, unwanted=False):
    """(gradients, seconds computed) of layers of a second, whose recomputation takes one and whose backward two. arena
    None: all is kept on the device. unwanted: what layers keep is their result, for which no recomputation asks.
    """
    torch.manual_seed(0)
    weights = [torch.randn(SIDE, SIDE, requires_grad=True) for _ in range(LAYERS)]
    x, seconds, on_device = torch.randn(SIDE, SIDE, requires_grad=True), [], []

    def work(amount):
        if computing is not None:
            computing.now += amount
        seconds.append(amount)
        alive = [each for each in alive_layers if each() is not None]
        on_device.append(sum(w.here is not None for each in alive for w in each()._tensors))

    alive_layers, leaf = [], x
    for weight in weights:

        def region(x, weight=weight):
            work(1)
            return torch.mm(torch.tanh(x), weight) if unwanted else torch.tanh(torch.mm(x, weight))

        if arena is None:
            x = region(x * 1)
        else:
            x, layer = x * 1, arena.begin_layer()
            alive_layers.append(weakref.ref(layer))
            settings = {"context_fn": partial(layer.results, MM)} if kept else {}
            with layer.inputs((x,)):
                x = checkpoint(region, x, use_reentrant=False, **settings)
            del layer
        x.register_hook(lambda grad: work(2))
    x.sum().backward()
    assert max(on_device) <= 2 * (1 + kept)
    return [leaf.grad, *(w.grad for w in weights)], sum(seconds)


def test_copies_hide_behind_layers_that_compute_for_longer(computing):
    """Each of a layer's two tensors takes 0.45 s to copy, and the layer a second."""
    expected, _ = run(None, None)
    arena, sizes = Clocked(0.45), set()
    for step in range(1, 4):
        before = computing.now
        found, computed = run(arena, computing)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        stalled, report = computing.now - before - computed, arena.report()
        assert computed == 4 * LAYERS and 0 <= stalled < 0.02 * computed
        # All goes to the host; what the last two layers keep is used where it is.
        assert report.to_host == step * LAYERS * 2 * BYTES
        assert report.from_host == step * (LAYERS - 2) * 2 * BYTES
        sizes.add(report.host_bytes)
    assert sizes == {LAYERS * 2 * BYTES}


def test_where_copies_take_longer_the_computation_waits_and_is_right(computing):
    expected, _ = run(None, None)
    arena = Clocked(5.0)
    found, computed = run(arena, computing)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert computing.now >= 5.0 * 2 * LAYERS > computed


def test_what_a_recomputation_does_not_ask_for_goes_with_its_layer(computing):
    expected, _ = run(None, None, unwanted=True)
    found, _ = run(Clocked(0.45), computing, unwanted=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_second_backward_takes_the_same_results(backend):
    model, args = build(bind(backend), backend), inputs(backend)
    outputs = forward(model, args, runner=poisoned("selective"))
    wanted = [model.video_dit.blocks[0].ffn[0].weight, model.audio_dit.blocks[0].ffn[0].weight]
    loss = outputs[0].square().sum() + outputs[1].square().sum()
    first, second = (torch.autograd.grad(loss, wanted, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inputs_alone(computing):
    expected, _ = run(None, None)
    arena = Clocked(0.9)
    found, _ = run(arena, computing, kept=False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert arena.report().to_host == LAYERS * BYTES


def test_a_backward_that_is_given_up_leaves_no_copy_under_way(computing):
    """Its tensors are held until the next forward has waited for them."""
    expected, _ = run(None, None)
    arena = Clocked(0.45)
    stop = LAYERS // 2

    class Given(Exception):
        pass

    def fail(grad):
        raise Given

    x = torch.randn(SIDE, SIDE, requires_grad=True)
    weight = torch.randn(SIDE, SIDE, requires_grad=True)
    for number in range(LAYERS):
        x, layer = x * 1, arena.begin_layer()
        with layer.inputs((x,)):
            x = checkpoint(
                lambda x: torch.tanh(torch.mm(x, weight)),
                x,
                use_reentrant=False,
                context_fn=partial(layer.results, MM),
            )
        del layer
        if number == stop:
            x.register_hook(fail)
    with pytest.raises(Given):
        x.sum().backward()
    del x
    found, _ = run(arena, computing)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_tensor_that_changes_before_it_is_copied_is_an_error(computing):
    arena, x = Clocked(0.45), torch.randn(SIDE, SIDE, requires_grad=True)
    y = x * 2
    with arena.begin_layer().inputs((y,)):
        z = y.square()
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        z.sum().backward()
