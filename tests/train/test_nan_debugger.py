"""`--debug nan`: a model is spoilt at one place, and that place is named."""

import pytest
import torch
from models.test_towers import build, forward, inputs
from spoilt_gradients import SpoiltGradient

from mova_engine.errors import MovaError
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.ops import bind
from mova_engine.train import assembly, trainer
from mova_engine.train.nonfinite_trace import NonfiniteTrace, NonfiniteValue, described, summary, unsound


def nan_weight(module):
    with torch.no_grad():
        module.weight.view(-1)[3] = torch.nan


def huge_weight(module):
    """Finite itself, but its products are not."""
    with torch.no_grad():
        module.weight.fill_(3e38)


def infinite_output(module):
    module.register_forward_hook(lambda module, given, made: made / 0)


def spoilt_gradient(module):
    module.register_forward_hook(lambda module, given, made: SpoiltGradient.apply(made))


def unused(module, given):
    given[0].x / 0


def traced(model, args, policy="none", expert=1):
    trace = NonfiniteTrace(model)
    with trace.observed():
        trace.begin(0)
        video, audio = forward(model, args, expert, bridge=model.dual_tower_bridge, runner=layer_runner(policy))
        loss = video.square().mean() + audio.square().mean()
        trace.check_loss(loss)
        loss.backward()
    assert not any(module._forward_hooks and module._forward_pre_hooks for module in model.modules())
    return trace.finding


@pytest.fixture
def model(backend):
    return build(bind(backend), backend)


CASES = [
    (nan_weight, "video_dit_2.blocks.1.ffn.0", "forward, in video_dit_2.blocks.1", "video_dit_2.blocks.1.ffn.0.weight"),
    (nan_weight, "audio_dit.blocks.1.cross_attn.k", "forward, in audio_dit.blocks.1.cross_attn", "cross_attn.k.weight"),
    (
        nan_weight,
        "video_dit_2.patch_embedding",
        "forward, in the model, outside of its layers",
        "patch_embedding.weight",
    ),
    (
        huge_weight,
        "video_dit_2.blocks.2.self_attn.q",
        "forward, in video_dit_2.blocks.2.self_attn, operator ",
        "infinite",
    ),
    (infinite_output, "audio_dit.blocks.0.cross_attn.o", "forward, in audio_dit.blocks.0.cross_attn.o, ", "aten::div"),
    (infinite_output, "video_dit_2.text_embedding.2", "forward, in video_dit_2.text_embedding.2, ", "aten::div"),
    (spoilt_gradient, "video_dit_2.blocks.1.self_attn.o", "backward, in video_dit_2.blocks.1.self_attn.o, ", "Spoilt"),
    (
        spoilt_gradient,
        "audio_dit.head.head",
        "backward, in audio_dit.head.head, of SpoiltGradientBackward",
        "float32 in ",
    ),
]


@pytest.mark.parametrize("policy", ["none", "full", "selective"])
@pytest.mark.parametrize(("spoil", "name", "where", "what"), CASES)
def test_the_first_layer_and_operator_are_named(model, backend, policy, spoil, name, where, what):
    spoil(model.get_submodule(name))
    found = traced(model, inputs(backend), policy)
    assert found is not None and found.text.startswith(where) and what in found.text, found


def test_what_is_infinite_and_not_used_is_no_finding(model, backend):
    block = model.video_dit.blocks[0]
    block.register_forward_pre_hook(unused)
    block.self_attn.register_forward_hook(lambda module, given, made: made + torch.full_like(made, -torch.inf).exp())
    assert traced(model, inputs(backend), expert=0) is None


def test_a_loss_that_is_not_finite_of_finite_outputs_is_said(model, backend):
    trace = NonfiniteTrace(model)
    with trace.observed():
        trace.begin(0)
        video, _ = forward(model, inputs(backend))
        trace.check_loss(video.mean() / 0)
    assert trace.finding.text.startswith("forward, in the model, outside of its layers, operator aten::div")


def test_the_earliest_finding_counts_and_who_only_received_it_comes_later():
    late, early = NonfiniteValue(0, 1, 9, False, "late"), NonfiniteValue(0, 1, 3, False, "early")
    received, backward = NonfiniteValue(0, 1, 3, True, "received"), NonfiniteValue(0, 2, 1, False, "backward")
    assert summary([late, received, early, backward]) == "rank 2: early"
    assert summary([late, late, None]) == "ranks 0, 1: late"
    assert summary([None, None]) is None and summary([early]) == "early"


def test_tensors_are_described_by_range_and_number():
    x = torch.tensor([1.0, -2.0, torch.nan, torch.inf])
    assert described(x) == "[4] float32 in -2..1, 1 NaN and 1 infinite of 4"
    assert described(x[:2]) == "[2] float32 in -2..1"
    assert unsound([("a", x[:2])]) is None and unsound([("a", x[:2]), ("b", x)]).startswith("b is not finite before")


def spoilt_build(monkeypatch, name, spoil):
    right = assembly.build_model

    def build_model(*args, **settings):
        model, shards = right(*args, **settings)
        spoil(model.get_submodule(name))
        return model, shards

    monkeypatch.setattr(assembly, "build_model", build_model)


def test_a_run_stops_at_its_first_step_that_is_not_finite(small, ran, monkeypatch):
    spoilt_build(monkeypatch, "video_dit.blocks.0.ffn", infinite_output)
    with pytest.raises(
        MovaError, match=r"^step 1 is not finite\. forward, in video_dit\.blocks\.0\.ffn, operator aten::"
    ):
        ran(small(debug="nan", global_batch_size=4))


def test_a_run_that_does_not_ask_for_it_pays_nothing(small, ran, monkeypatch):
    monkeypatch.setattr(trainer, "NanDebugger", None)
    spoilt_build(monkeypatch, "audio_dit.blocks.0.ffn", nan_weight_of_first)
    with pytest.raises(MovaError, match="2 steps in a row were not finite"):
        ran(small(optim={"max_nonfinite": 2}))


def nan_weight_of_first(module):
    nan_weight(module[0])
