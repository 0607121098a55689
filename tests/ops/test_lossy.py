"""Attention in 8 bits and sparse: the published maths, adapters against stand-ins, what is listed and refused."""

import dataclasses
import sys

import pytest
import torch
from ops import vendors

from mova_engine.backend import get_backend
from mova_engine.errors import MovaError
from mova_engine.ops import lossy, resolve
from mova_engine.ops.__main__ import main
from mova_engine.ops.choice import choose
from mova_engine.ops.lossy_table import LOSSY, LOSSY_SLACK
from mova_engine.ops.machine import assumed_machine
from mova_engine.ops.reference import attention_reference
from mova_engine.ops.registry import ThisMachine

OPERATOR = LOSSY["lossy_attention"]
BF16 = torch.bfloat16


def inputs(b=2, s=200, h=3, e=64, dtype=torch.float32, outlier=0.0, seed=0):
    """Normal values; outlier: size of channels that are alike for all keys."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, b, s, h, e, generator=generator)
    return [x.to(dtype) for x in (q, k + outlier * torch.randn(1, 1, h, e, generator=generator), v)]


def exact(q, k, v):
    return attention_reference(q.double(), k.double(), v.double())


def test_scores_are_products_of_integers_with_a_scale_for_each_block():
    q, _, _ = inputs(b=1, s=150, h=2, e=8)
    whole, scale = lossy.quantised_blocks(q, 64)
    assert whole.shape == q.shape and scale.shape == (1, 150, 2, 1)
    assert torch.equal(whole, whole.round()) and whole.abs().max() == 127
    for head in range(2):
        for begin in (0, 64, 128):
            block = q[0, begin : begin + 64, head]
            assert torch.allclose(scale[0, begin : begin + 64, head], block.abs().max() / 127)
    assert ((whole * scale - q).abs() <= 0.5001 * scale).all()


def test_int8_is_near_on_normal_values_and_smoothing_is_why_it_stays_so_beside_large_channels(monkeypatch):
    for outlier in (0.0, 8.0):
        q, k, v = inputs(outlier=outlier)
        assert 1e-4 < lossy.deviation(lossy.int8(q, k, v), exact(q, k, v)) < 0.02
    monkeypatch.setattr(lossy, "smoothed", lambda k: k)
    assert lossy.deviation(lossy.int8(q, k, v), exact(q, k, v)) > 0.04


@pytest.mark.parametrize(("s", "n"), [(1, 1), (3, 700), (513, 65), (1024, 128)])
def test_int8_takes_any_number_of_queries_and_keys(s, n):
    q, k, v = inputs(s=max(s, n), b=1, h=2, e=32)
    q, k, v = q[:, :s], k[:, :n], v[:, :n]
    found = lossy.int8(q.to(BF16), k.to(BF16), v.to(BF16))
    assert found.shape == q.shape and found.dtype == BF16
    assert lossy.deviation(found, exact(q, k, v)) < 0.03
    assert not lossy.int8(q, k[:, :0], v[:, :0]).any()


def test_deviation_is_that_of_the_worst_head_and_clip():
    truth = torch.randn(2, 50, 3, 16, generator=torch.Generator().manual_seed(1))
    assert lossy.deviation(truth, truth) == 0
    found = truth.clone()
    found[1, :, 2] *= 1.25
    assert lossy.deviation(found, truth) == pytest.approx(0.25, rel=1e-5)
    found[0, 3, 1, 4] = torch.nan
    assert lossy.deviation(found, truth) == lossy.deviation(truth[:, 1:], truth) == float("inf")


@pytest.fixture
def install(monkeypatch):
    def put(modules):
        for name, module in vendors.importable(modules).items():
            monkeypatch.setitem(sys.modules, name, module)

    return put


def entry(name):
    return next(i for i in OPERATOR.implementations if i.name == name)


@pytest.mark.parametrize(
    ("name", "modules"), [("sage", vendors.sageattention), ("flash-attn-3-fp8", vendors.flash3),
                          ("rainfusion", vendors.mindiesd)]
)  # fmt: skip
def test_packages_are_spoken_to_as_they_document(install, name, modules):
    install(modules())
    anywhere = dataclasses.replace(entry(name), devices=(), check=None)
    assert anywhere.refusal(ThisMachine(get_backend("cpu")), training=False) is None
    for outlier in (0.0, 8.0):
        q, k, v = inputs(dtype=BF16, outlier=outlier)
        # Channels that are apart, as views of a fused projection have them.
        q = q.transpose(2, 3).contiguous().transpose(2, 3)
        found = resolve(anywhere.target)(q, k, v, grid=(2, 10, 10))
        assert found.shape == q.shape and found.dtype == BF16
        assert 1e-4 < lossy.deviation(found, exact(q, k, v)) < LOSSY_SLACK


def test_what_a_package_cannot_is_a_line(install):
    install(vendors.sageattention() | vendors.flash3() | vendors.mindiesd())
    for name, arguments, told in (
        ("sage", {"e": 136}, "multiples of 8 up to 128, got 136"),
        ("flash-attn-3-fp8", {"e": 20}, "multiples of 8 up to 256, got 20"),
        ("rainfusion", {"s": 201}, "self-attention over a grid of tokens"),
    ):
        with pytest.raises(MovaError, match=told):
            resolve(entry(name).target)(*inputs(dtype=BF16, **arguments), grid=(2, 10, 10))
    with pytest.raises(MovaError, match=r"takes bfloat16, float16"):
        lossy.sage(*inputs())
    sys.modules["sageattention"].sageattn = lambda *_, **__: (_ for _ in ()).throw(ValueError("Unsupported sm100"))
    with pytest.raises(MovaError, match="sageattention cannot serve here: Unsupported sm100"):
        lossy.sage(*inputs(dtype=BF16))


def test_none_is_ever_chosen_by_itself():
    for device, capability, packages in (
        ("cuda", "sm90", ["sageattention", "flash-attn-3"]),
        ("npu", "910a2", ["mindiesd"]),
        ("cpu", "amx", []),
    ):
        machine = assumed_machine(device, capability, packages)
        (choice,) = choose(machine, training=False, operators=LOSSY)
        assert choice.implementation == "reference"
        assert len(choice.refused) == 4 and {reason for _, reason in choice.refused} == {"is used only when named"}
    for name, told in (
        ("sage", "needs compute capability 8.0 and later, this GPU has 7.5"),
        ("flash-attn-3-fp8", "needs compute capability 9.0 to 9.x, this GPU has 7.5"),
        ("rainfusion", "runs on npu, not on cuda"),
    ):
        machine = assumed_machine("cuda", "sm75", ["sageattention", "flash-attn-3"])
        with pytest.raises(MovaError, match=told):
            choose(machine, {"lossy_attention": name}, training=False, operators=LOSSY)


def test_mova_ops_lists_them_with_the_reason(capsys):
    main(["--device", "cuda", "--assume", "sm90", "--with", "sageattention"])
    shown = capsys.readouterr().out
    for line in (
        "lossy_attention              -> reference",
        "also sage (sageattn) (when named)",
        "not flash-attn-3-fp8 (flash_attn_func): flash-attn-3 is not installed",
        "not rainfusion (sparse_attention): runs on npu, not on cuda",
        "also int8 (when named)",
    ):
        assert line in shown
