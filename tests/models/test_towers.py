"""The towers and the dual-tower forward beyond what the recorded cases show."""

import dataclasses
import gc
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mova_engine.adapters.lora import add_lora
from mova_engine.backend import get_backend
from mova_engine.bench.peak_memory import LiveTensors
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig, get_preset
from mova_engine.errors import MovaError
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.memory.host_offload import ActivationArena
from mova_engine.models.modality import Modality, modalities
from mova_engine.models.mova import Mova, dual_tower_forward
from mova_engine.models.rope import RopeTables, audio_rope
from mova_engine.ops import bind

VIDEO = VideoDiTConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=3, text_dim=24, freq_dim=16)
AUDIO = AudioDiTConfig(dim=16, ffn_dim=24, num_heads=1, num_layers=2, text_dim=24, freq_dim=16)
BRIDGE = BridgeConfig(3, 2, 32, 16, head_dim=16)
TINY = MovaConfig("tiny", VIDEO, AUDIO, BRIDGE, ClipConfig(frames=5, height=32, width=48), experts=2)


@pytest.fixture
def ops(backend):
    return bind(backend)


def build(ops, backend, config=TINY, dtype=torch.float32):
    model = Mova(config, ops, dtype=dtype)
    model.init_weights(torch.Generator().manual_seed(1))
    # A fresh head and bridge are zero: random ones, so that everything shows in the output.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() == 0 or "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    return model.to(backend.device())


def inputs(backend, batch=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    shapes = ((batch, 36, 2, 4, 6), (batch, 128, 7), (batch, 5, 24))
    tensors = [torch.randn(shape, generator=g).to(backend.device(), dtype) for shape in shapes]
    times = [torch.tensor([950.0, 120.0][:batch]), torch.tensor([400.0, 999.0][:batch])]
    return [*tensors, *(t.to(backend.device()) for t in times)]


def forward(model, args, expert=0, **options):
    bridge = options.pop("bridge", model.dual_tower_bridge)
    return dual_tower_forward(model.expert(expert), model.audio_dit, bridge, *modalities(*args), **options)


def test_each_sample_of_a_batch_is_independent(ops, backend):
    model, args = build(ops, backend), inputs(backend)
    together = forward(model, args)
    for i in range(2):
        alone = forward(model, [x[i : i + 1] for x in args])
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[i : i + 1], part, rtol=1e-5, atol=1e-5)


def gradients_of(model, args, **options):
    model.zero_grad(set_to_none=True)
    video, audio = forward(model, args, **options)
    (video.square().sum() + audio.square().sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("policy", ["full", "selective", "out"])
@pytest.mark.parametrize(("offload", "dtype", "table"), [(False, "bfloat16", {}), (True, "float32", "reference")])
def test_checkpointing_changes_no_bit_of_values_and_gradients(backend, policy, offload, dtype, table):
    model, args = build(bind(backend, table or None), backend, dtype=torch.float32), inputs(backend)
    model.to(getattr(torch, dtype))
    plain = gradients_of(model, args)
    found = gradients_of(model, args, runner=layer_runner(policy, offload))
    assert plain.keys() == found.keys()
    assert not [name for name in plain if not torch.equal(plain[name], found[name])]


@pytest.mark.parametrize(("policy", "runs"), [("none", 1), ("full", 2), ("selective", 1), ("out", 1)])
def test_selective_checkpointing_runs_video_attention_once(ops, backend, policy, runs):
    """The other attentions (audio, text, bridge) are recomputed or not as ever."""
    calls = []

    def counted(q, k, v):
        calls.append(1)
        return ops.attention_lse(q, k, v)

    model = build(ops.replaced(attention_lse=counted), backend)
    gradients_of(model, inputs(backend), runner=layer_runner(policy))
    assert len(calls) == runs * VIDEO.num_layers


def kept_by_layers(ops, backend, layers: int, trained: bool) -> float:
    """Activations of the video that are alive after a forward under full checkpointing."""
    video, bridge = dataclasses.replace(VIDEO, num_layers=layers), dataclasses.replace(BRIDGE, visual_layers=layers)
    config = dataclasses.replace(TINY, video=video, bridge=bridge)
    model, args = build(ops, backend, config), inputs(backend)
    if not trained:
        model.requires_grad_(False)
        add_lora(model, ("q", "ffn.0"), 2, alpha=2.0)
    # Twelve tokens.
    activation = 2 * 12 * VIDEO.dim * 4
    with LiveTensors() as live:
        outputs = forward(model, args, runner=layer_runner("full"))
        kept = sum(event.bytes for event in live.events if abs(event.bytes) == activation)
    assert outputs[0].requires_grad
    return kept / activation


@pytest.mark.parametrize(("trained", "inputs_of_a_layer"), [(True, 2), (False, 1)])
def test_a_checkpointed_layer_keeps_its_inputs_alone(ops, backend, trained, inputs_of_a_layer):
    """The residual and, where its gate is trained, the update that is not yet added to it."""
    fewer, more = (kept_by_layers(ops, backend, layers, trained) for layers in (3, 4))
    assert more - fewer == inputs_of_a_layer


@pytest.mark.parametrize("name", ["c10d::alltoall_base_", "c10d::send", "aten::add_.Tensor", "aten::mul.out"])
def test_a_policy_on_an_operator_that_changes_its_arguments_is_refused(name):
    """Its results would be kept and what it writes never written: gradients of something else, without a word."""
    with pytest.raises(MovaError, match=f"cannot keep results of {name}: it changes its arguments"):
        layer_runner("selective", save=(name,))


def test_a_policy_on_an_unknown_operator_is_refused():
    with pytest.raises(MovaError, match="cannot keep results of mova::alltoall: torch knows no such operator"):
        layer_runner("full", save=("mova::alltoall",))


def test_results_of_other_operators_can_be_kept_too(ops, backend):
    model, args, products = build(ops, backend), inputs(backend), []
    plain = gradients_of(model, args)

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            products.append(func is torch.ops.aten.addmm.default)
            return func(*args, **(kwargs or {}))

    counts = []
    for save in ((), ("aten::addmm",)):
        products.clear()
        with Counted():
            found = gradients_of(model, args, runner=layer_runner("full", save=save))
        counts.append(sum(products))
        assert not [name for name in plain if not torch.equal(plain[name], found[name])]
    assert counts[1] < 0.7 * counts[0], counts


def test_offload_keeps_no_layer_input_on_the_device(ops, backend):
    layer, x = ActivationArena().begin_layer(), torch.randn(3, requires_grad=True)
    y = x * 2
    with layer.inputs((y,)):
        z = y.square()
    assert [len(each) for each in layer.buffers] == [y.nbytes]
    y = None
    z.sum().backward(retain_graph=True)
    torch.testing.assert_close(x.grad, 8 * x.detach())
    z.sum().backward()
    torch.testing.assert_close(x.grad, 16 * x.detach())


def test_offload_serves_a_second_backward_and_a_derivative_of_the_gradient():
    layer, x = ActivationArena().begin_layer(), torch.tensor([1.0, 2.0], requires_grad=True)
    y, other = x * 1, x * 3
    with layer.inputs((y, other)):
        z = (y.pow(3) * other).sum()
    (first,) = torch.autograd.grad(z, x, create_graph=True)
    torch.testing.assert_close(first, 12 * x.detach() ** 3)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, 36 * x.detach() ** 2)


def test_rotary_tables_are_the_models_own(ops, backend):
    """Not the process's: they end with the model, and are no part of its state; experts share them."""
    model, args = build(ops, backend), inputs(backend)
    names = list(model.state_dict())
    first = forward(model, args)
    tower = model.video_dit
    kept = tower.tables.cos0
    assert any(x is kept for x in model.buffers()) and model.video_dit_2.tables is tower.tables
    assert all(torch.equal(a, b) for a, b in zip(first, forward(model, args), strict=True))
    assert tower.tables.cos0 is kept, "the second forward makes none"
    assert list(model.state_dict()) == names
    gone = weakref.ref(kept)
    assert not list(build(ops, backend).video_dit.tables.buffers())
    del kept, tower, model, first
    gc.collect()
    assert gone() is None


def test_rotary_tables_of_a_model_in_another_dtype_are_float32(ops, backend):
    model, args = build(ops, backend), inputs(backend)
    forward(model, args)
    model.to(torch.bfloat16)
    forward(model, args)
    tables = model.video_dit.tables
    assert len(list(tables.buffers())) == 2 and tables.cos0.dtype == torch.float32
    assert not tables.cos0.equal(tables.cos0.bfloat16().float())


@pytest.mark.parametrize("mode", [FakeTensorMode, torch.inference_mode])
def test_tables_without_data_or_gradients_are_not_kept(backend, mode):
    tables = RopeTables()
    with mode():
        tables.get(audio_rope, 5, 8, torch.device("cpu"))
    cos, _ = tables.get(audio_rope, 5, 8, torch.device("cpu"))
    assert type(cos) is torch.Tensor and not cos.is_inference() and cos[0, 0] == 1
    for tokens in range(6, 12):
        tables.get(audio_rope, tokens, 8, torch.device("cpu"))
    assert len(tables.kept) == tables.most and len(list(tables.buffers())) == 2 * tables.most


def test_tables_do_not_break_a_compiled_graph(backend):
    """At two sizes of clip, then the first again."""
    tower = build(bind(backend, "reference"), backend).audio_dit
    compiled = torch.compile(lambda *args: tower.embed(Modality(*args))[1].rope, backend="eager", fullgraph=True)
    for tokens in (5, 7, 5):
        x, text = torch.randn(1, AUDIO.in_dim, tokens), torch.randn(1, 3, AUDIO.text_dim)
        for ours, plain in zip(compiled(x, torch.tensor([500.0]), text), tower.rope((tokens,), x.device), strict=True):
            assert torch.equal(ours, plain)


def test_every_parameter_of_the_used_expert_gets_a_gradient_and_no_other(ops, backend):
    model, args = build(ops, backend), inputs(backend)
    video, audio = forward(model, args, expert=1)
    (video.sum() + audio.sum()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {f"video_dit.{name}" for name, _ in model.video_dit.named_parameters()}


def test_the_bridge_carries_both_directions(ops, backend):
    model, args = build(ops, backend), inputs(backend)
    video, audio = forward(model, args)
    off_video, off_audio = forward(model, args, bridge=None)
    assert not torch.allclose(video, off_video)
    assert not torch.allclose(audio, off_audio)
    zero_video, zero_audio = forward(model, args, bridge_scale=(0.0, 0.0))
    torch.testing.assert_close(zero_video, off_video, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(zero_audio, off_audio, rtol=1e-4, atol=1e-5)


def test_both_directions_read_the_states_from_before_the_bridge(ops, backend):
    """With one direction switched off the other's result is unchanged in the layer where both run."""
    config = dataclasses.replace(
        TINY, bridge=dataclasses.replace(BRIDGE, interaction_strategy="custom", interaction_layers=(1,))
    )
    model, args = build(ops, backend, config), inputs(backend)
    seen = {}
    for scale in ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0)):
        states = {}
        forward(model, args, bridge_scale=scale, trace=states.__setitem__)
        seen[scale] = states
    torch.testing.assert_close(seen[1.0, 1.0]["bridge1.audio"], seen[0.0, 1.0]["bridge1.audio"])
    torch.testing.assert_close(seen[1.0, 1.0]["bridge1.visual"], seen[1.0, 0.0]["bridge1.visual"])


def test_tracing_does_not_change_the_result(ops, backend):
    model, args = build(ops, backend), inputs(backend)
    plain, traced = forward(model, args), forward(model, args, trace=lambda name, x: None)
    for a, b in zip(plain, traced, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_trainable_condition_scale_scales_both_directions(ops, backend):
    config = dataclasses.replace(TINY, bridge=dataclasses.replace(BRIDGE, trainable_condition_scale=True))
    model, args = build(ops, backend, config), inputs(backend)
    with torch.no_grad():
        model.dual_tower_bridge.condition_scale.fill_(0.5)
    halved = forward(model, args)
    halved[0].sum().backward()
    assert model.dual_tower_bridge.condition_scale.grad.abs() > 0
    plain = build(ops, backend)
    for a, b in zip(halved, forward(plain, args, bridge_scale=(0.5, 0.5)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_follows_float32(ops, backend):
    args = inputs(backend)
    reference = forward(build(ops, backend), args)
    model = build(ops, backend).to(torch.bfloat16)
    for ours, theirs in zip(forward(model, args), reference, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).abs().max() / theirs.abs().max() < 0.03


def test_one_expert_serves_both_intervals(ops, backend):
    model = Mova(dataclasses.replace(TINY, experts=1), ops)
    assert model.expert(0) is model.expert(1) is model.video_dit
    with pytest.raises(MovaError, match="expert must be 0"):
        model.expert(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: (2, 35, 2, 4, 6)}, r"video input must be \[batch, 36"),
        ({0: (2, 36, 2, 5, 6)}, "not a multiple of the patch"),
        ({1: (2, 127, 7)}, r"audio latents must be \[batch, 128"),
        ({1: (1, 128, 7)}, "video has batch 2 but audio has batch 1"),
        ({2: (2, 5, 23)}, r"text features must be \[batch, tokens, 24\]"),
        ({2: (1, 5, 24)}, "text has batch 1 but the latents have batch 2"),
        ({3: (3,)}, r"timestep must have shape \[1\] or \[2\]"),
    ],
)
def test_wrong_shapes_are_named(ops, backend, change, message):
    args = inputs(backend)
    for index, shape in change.items():
        args[index] = torch.zeros(shape, device=backend.device())
    with pytest.raises(MovaError, match=message):
        forward(build(ops, backend), args)


def test_an_unknown_checkpointing_policy_is_refused():
    with pytest.raises(MovaError, match="checkpointing must be one of none, selective, out, full, got 'ful'"):
        layer_runner("ful")


@pytest.mark.parametrize(
    ("component", "billions"), [("video_dit", 14.289), ("audio_dit", 1.419), ("dual_tower_bridge", 2.660)]
)
def test_released_sizes_on_the_meta_device(component, billions):
    model = Mova(get_preset("mova-360p"), bind(get_backend("cpu")), device="meta")
    count = sum(p.numel() for p in getattr(model, component).parameters())
    assert round(count / 1e9, 3) == billions
    assert all(p.is_meta for p in model.parameters())


def test_a_fresh_model_predicts_zero_and_its_bridge_is_silent(ops):
    model = Mova(TINY, ops)
    model.init_weights(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        zero = bool((parameter == 0).all())
        expected = name.endswith(".bias") or "head.head" in name or ("bridge" in name and ".inner.o." in name)
        assert zero == expected, name
