"""Every call of torch_npu's operators at MOVA's real sizes, on fake tensors of the device, and the limits of hardware.

torch_npu's own schemas, autograd formulas and shape functions judge the calls; `limits.py` adds what hardware demands.
Nothing is computed, so that a model of 14 billion parameters fits.
"""

import inspect
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ascend.limits import LimitError, Limits
from mova_engine.codecs import dac
from mova_engine.config.model import get_preset
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova, dual_tower_forward
from mova_engine.ops import OPERATORS, OpTable, bind, bind_operator, refusal
from mova_engine.ops.row_chunks import product_chunks
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import verify

pytestmark = pytest.mark.npu

PRESETS = ("mova-360p", "mova-720p")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHARDS = (1, 4, 8, 16)
TEXT = 512


@pytest.fixture
def limits(npu) -> Iterator[Limits]:
    """Fake tensors, and every npu:: call held to the limits."""
    with FakeTensorMode(), Limits() as mode:
        yield mode


@pytest.fixture(scope="module")
def ops(npu) -> OpTable:
    names = [name for name, operator in OPERATORS.items() if "npu" in operator.choices()]
    return bind(npu, dict.fromkeys(names, "npu"))


def _tensor(*shape: int, dtype: torch.dtype, grad: bool = True) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="npu", requires_grad=grad)


def assert_gradients(outputs, leaves: dict[str, Tensor]) -> None:
    """A gradient that stays None would train nothing and say nothing."""
    total = sum(x.float().sum() for x in (outputs if isinstance(outputs, tuple) else (outputs,)))
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        assert grad is not None, f"no gradient of {name}"
        assert grad.shape == leaf.shape and grad.dtype == leaf.dtype, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_whole_model_at_its_real_size(limits, ops, preset, dtype):
    """Two layers of each tower with their bridge, forward and backward: every layer has the same shapes."""
    config = get_preset(preset)
    clip, wanted = config.clip, DTYPES[dtype]
    towers = {name: replace(getattr(config, name), num_layers=2) for name in ("video", "audio")}
    config = replace(config, **towers, bridge=replace(config.bridge, visual_layers=2, audio_layers=2))
    model = Mova(config, ops, "npu", wanted)
    t, h, w = clip.latent_shape
    video = torch.empty(1, config.video.in_dim, t, h, w, device="npu")
    audio = torch.empty(1, config.audio.in_dim, clip.audio_tokens, device="npu")
    text, time = torch.empty(1, TEXT, config.video.text_dim, device="npu"), torch.empty(1)
    parts = (model.video_dit, model.audio_dit, model.dual_tower_bridge)
    outputs = dual_tower_forward(*parts, *modalities(video, audio, text, time, time))
    named = {name: p for part in parts for name, p in part.named_parameters()}
    assert_gradients(outputs, named)
    assert limits.calls.keys() == {
        *("npu::npu_add_layer_norm", "npu::npu_rms_norm", "npu::npu_rms_norm_backward", "npu::npu_rotary_mul"),
        *("npu::npu_fusion_attention", "npu::npu_fusion_attention_grad", "npu::npu_gelu", "npu::npu_gelu_backward"),
    }


def _rows(preset: str, shards: int) -> dict[str, tuple[int, int]]:
    """Tokens and heads of both towers where the video's tokens are shared by `shards` devices."""
    config = get_preset(preset)
    tokens = -(-config.clip.video_tokens // shards)
    return {"video": (tokens, config.video.num_heads), "audio": (config.clip.audio_tokens, config.audio.num_heads)}


SHARDED = pytest.mark.parametrize("shards", SHARDS)
EACH_PRESET = pytest.mark.parametrize("preset", PRESETS)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)


@SHARDED
@EACH_PRESET
@EACH_DTYPE
@pytest.mark.parametrize("batch", [1, 2])
def test_rows_of_a_shard(limits, ops, preset, shards, dtype, batch):
    """Norms, rotation and gates, of one sample and of several."""
    for s, heads in _rows(preset, shards).values():
        d, wanted = 128 * heads, DTYPES[dtype]
        x, y, weight, bias = (_tensor(*shape, dtype=wanted) for shape in ((batch, s, d), (batch, s, d), (d,), (d,)))
        vectors = {name: _tensor(batch, d, dtype=torch.float32) for name in ("gate", "shift", "scale")}
        gate, modulation = vectors["gate"], {name: vectors[name] for name in ("shift", "scale")}
        tables = (_tensor(s, 64, dtype=torch.float32, grad=False) for _ in range(2))
        cos, sin = tables
        for interleaved in (True, False):
            rotated = ops.rms_norm_rope(x, weight, cos, sin, eps=1e-6, interleaved=interleaved)
            assert_gradients(rotated, {"x": x, "weight": weight})
        assert_gradients(ops.rms_norm(x, weight, eps=1e-6), {"x": x, "weight": weight})
        assert_gradients(ops.norm_modulate(x, **modulation, eps=1e-6), {"x": x, **modulation})
        affine = {"weight": weight, "bias": bias}
        assert_gradients(ops.layer_norm(x, **affine, eps=1e-6), {"x": x, **affine})
        both = {"x": x, "y": y}
        assert_gradients(ops.gate_residual(x, y, gate), {**both, "gate": gate})
        assert_gradients(ops.gate_residual_norm(x, y, gate, **affine, eps=1e-6), {**both, "gate": gate, **affine})
        gated = ops.gate_residual_norm_modulate(x, y, gate, **modulation, eps=1e-6)
        assert_gradients(gated, {**both, **vectors})
        assert_gradients(ops.gate_residual_norm_modulate(x, y, None, **modulation, eps=1e-6), {**both, **modulation})
        hidden, up = _tensor(4 * d, d, dtype=wanted), _tensor(4 * d, dtype=wanted)
        assert_gradients(ops.linear_gelu(x, hidden, up), {"x": x, "weight": hidden, "bias": up})
        assert_gradients(ops.bias_gelu(x, bias), {"x": x, "bias": bias})


@pytest.mark.parametrize("interleaved", [True, False])
def test_more_samples_than_a_rotation_takes_in_its_batch(limits, ops, interleaved):
    """Thirty of forty heads: the operator gets them as tokens."""
    x, weight = (_tensor(*shape, dtype=torch.bfloat16) for shape in ((30, 64, 5120), (5120,)))
    cos, sin = (_tensor(64, 64, dtype=torch.float32, grad=False) for _ in range(2))
    rotated = ops.rms_norm_rope(x, weight, cos, sin, eps=1e-6, interleaved=interleaved)
    assert_gradients(rotated, {"x": x, "weight": weight})


@SHARDED
@EACH_PRESET
def test_int8_layers_of_a_shard(limits, ops, preset, shards):
    """Rows of both widths of a feed-forward: the wider ones torch_npu does not quantise, and they come in parts."""
    (s, _), dim, ffn = _rows(preset, shards)["video"], get_preset(preset).video.dim, get_preset(preset).video.ffn_dim
    for i, o in ((dim, ffn), (ffn, dim)):
        x, bias = _tensor(1, s, i, dtype=torch.bfloat16), _tensor(o, dtype=torch.bfloat16)
        a, b = _tensor(16, i, dtype=torch.bfloat16), _tensor(o, 16, dtype=torch.bfloat16)
        weight = torch.empty(o, i, dtype=torch.int8, device="npu")
        out = ops.int8_linear(x, weight, _tensor(o, dtype=torch.float32, grad=False), bias, a, b, scale=1.0)
        assert_gradients(out, {"x": x, "bias": bias, "lora_a": a, "lora_b": b})
    assert limits.calls == {"npu::npu_dynamic_quant": 1, "npu::npu_quant_matmul": 1 + len(product_chunks(s, ffn))}


def _attentions(preset: str, shards: int) -> dict[str, tuple[int, int, int]]:
    """Queries, keys and heads: all tokens by a share of the heads (Ulysses), and shares of both (ring); the bridge."""
    rows = _rows(preset, shards)
    (own, video_heads), (audio, audio_heads) = rows["video"], rows["audio"]
    every = get_preset(preset).clip.video_tokens
    found = {"ring": (own, own, video_heads), "text": (own, TEXT, video_heads), "audio": (audio, audio, audio_heads)}
    found |= {"audio-to-video": (own, audio, video_heads), "video-to-audio": (audio, own, audio_heads)}
    if video_heads % shards == 0:
        found["ulysses"] = (every, every, video_heads // shards)
    return found


@SHARDED
@EACH_PRESET
@EACH_DTYPE
def test_attention_of_a_shard(limits, ops, preset, shards, dtype):
    for queries, keys, heads in _attentions(preset, shards).values():
        wanted = DTYPES[dtype]
        q = _tensor(1, queries, heads, 128, dtype=wanted)
        k, v = (_tensor(1, keys, heads, 128, dtype=wanted) for _ in range(2))
        assert_gradients(ops.attention(q, k, v), {"q": q, "k": k, "v": v})
        out, lse = ops.attention_lse(q, k, v)
        assert lse.shape == (1, heads, queries) and lse.dtype == torch.float32
        grads = ops.attention_backward(out, q, k, v, out, lse)
        assert [g.shape for g in grads] == [q.shape, k.shape, v.shape]
        outs, lses = torch.stack([out.detach()] * shards), torch.stack([lse] * shards)
        merged, total = ops.merge_lse(outs, lses)
        assert merged.shape == q.shape and merged.dtype == wanted and total.shape == lse.shape


@EACH_DTYPE
def test_the_audio_codec_at_its_real_size(limits, npu, monkeypatch, dtype):
    """Eight seconds there and back; latents as the model gives them, channels last."""
    # What looks at values, which fake tensors do not have.
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda x, **_: x)
    for check in ("check_audio", "check_latents"):
        monkeypatch.setattr(dac, check, lambda *_: None)
    codec = dac.DacCodec(dac.Dac(dac.DacConfig(use_weight_norm=True), "npu", DTYPES[dtype]))
    latents = codec.encode(torch.empty(1, 1, 8 * codec.sample_rate, device="npu"))
    assert latents.shape == (1, 128, 400)
    assert codec.decode(latents.mT.contiguous().mT).shape == (1, 1, 8 * codec.sample_rate)
    assert limits.convolutions > 70 and not limits.calls


def test_no_attention_of_ours_has_lengths_or_a_mask():
    """Clips of a batch have one length and texts one padded length: BSND says all there is. Else TND would."""
    for name in ("attention", "attention_lse"):
        assert list(inspect.signature(OPERATORS[name].reference).parameters) == ["q", "k", "v"]


@SHARDED
@EACH_PRESET
@EACH_DTYPE
def test_inference_operators_of_mindie(limits, npu, preset, shards, dtype):
    operator = OPERATORS["gate_residual_norm_modulate"]
    (entry,) = (entry for entry in operator.implementations if entry.name == "mindie")
    if reason := refusal(operator, entry, npu, training=False):
        pytest.skip(reason)
    make, _ = bind_operator(operator, npu, "mindie", training=False)
    for s, heads in _rows(preset, shards).values():
        x = _tensor(1, s, 128 * heads, dtype=DTYPES[dtype])
        vector = _tensor(1, 128 * heads, dtype=torch.float32)
        r, normed = make(x, x, vector, vector, vector, eps=1e-6)
        assert r.shape == normed.shape == x.shape and normed.dtype == x.dtype
    assert limits.calls == {"mindiesd::adaln": 2}


def test_what_no_layout_can_serve_is_refused_with_the_way_out(limits, ops):
    x, table = _tensor(1, 4, 1800, dtype=torch.float32), _tensor(4, 450, dtype=torch.float32, grad=False)
    with pytest.raises(ValueError, match="head dims below 896.*the reference takes them"):
        ops.rms_norm_rope(x, _tensor(1800, dtype=torch.float32), table, table, eps=1e-6, interleaved=True)
    q = _tensor(1, 4, 257, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match="up to 256 heads.*the reference takes them"):
        ops.attention(q, q, q)
    with pytest.raises(ValueError, match="up to 16 shards.*the reference takes them"):
        ops.merge_lse(_tensor(17, 1, 4, 2, 8, dtype=torch.float32), _tensor(17, 1, 2, 4, dtype=torch.float32))


# What must not slip through: each of these mistakes fails a check that the tests above make.


def test_fast_gelu_for_the_tanh_form_is_seen(limits, npu):
    with pytest.raises(LimitError, match="npu::fast_gelu is not in the table"):
        torch.ops.npu.fast_gelu(_tensor(2, 4, dtype=torch.float32))
    with pytest.raises(LimitError, match="tanh form"):
        torch.ops.npu.npu_gelu(_tensor(2, 4, dtype=torch.float32), approximate="none")


def test_a_wrong_head_count_is_seen(limits, npu):
    q = _tensor(1, 8, 40, 128, dtype=torch.bfloat16)
    with pytest.raises(LimitError, match="head_num 12 for 40 heads"):
        torch.ops.npu.npu_fusion_attention(q, q, q, 12, "BSND", scale=128**-0.5)


def test_what_users_ran_into_is_seen(limits, npu):
    x, weight = _tensor(1, 8, 4, 4, dtype=torch.float32), _tensor(8, 8, 1, 1, dtype=torch.float32)
    with pytest.raises(LimitError, match="memory is not contiguous"):
        torch.nn.functional.conv2d(x.to(memory_format=torch.channels_last), weight)
    with pytest.raises(LimitError, match="complex64"):
        torch.polar(torch.ones(2, device="npu"), torch.ones(2, device="npu"))
    with pytest.raises(LimitError, match="float64"):
        torch.ones(2, device="npu").double()


def test_a_batch_beyond_the_limit_of_rotation_is_seen(limits, npu):
    x, table = _tensor(25, 8, 40, 128, dtype=torch.bfloat16), _tensor(1, 8, 1, 128, dtype=torch.bfloat16, grad=False)
    with pytest.raises(LimitError, match=r"b \* n = 1000"):
        torch.ops.npu.npu_rotary_mul(x, table, table, "interleave")


@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
def test_an_operator_that_leaves_a_gradient_none_is_seen(npu):
    with FakeTensorMode():
        x, weight = _tensor(2, 8, dtype=torch.float32), _tensor(8, dtype=torch.float32)
        y = torch.ops.npu.npu_layer_norm_eval(x, [8], weight, weight)
        with pytest.raises((AssertionError, RuntimeError), match="no gradient of x|does not require grad"):
            assert_gradients(y, {"x": x})


def _missed(npu, name: str, implementation) -> bool:
    """Whether the judgement of operators finds fault with an implementation in some case."""
    operator = OPERATORS[name]
    return any(
        not finding.passed
        for case in cases_of(operator)
        if case.size == "test"
        for finding in verify(operator, implementation, case, npu.device(), torch.float32)
    )


def test_the_operator_suite_sees_them_too(npu, ops):
    """The same mistakes, by their numbers."""
    assert not _missed(npu, "linear_gelu", ops.linear_gelu)
    fast = lambda x, weight, bias: torch.ops.npu.fast_gelu(torch.nn.functional.linear(x, weight, bias))  # noqa: E731
    assert _missed(npu, "linear_gelu", fast)

    def swapped(*args, interleaved, **kwargs):
        return ops.rms_norm_rope(*args, interleaved=not interleaved, **kwargs)

    assert not _missed(npu, "rms_norm_rope", ops.rms_norm_rope)
    assert _missed(npu, "rms_norm_rope", swapped)
