"""Linear layers with GELU, adapters and fp8: what they keep, that they add in place, and which GELU an epilogue has."""

import pytest
import torch
import torch.nn.functional as F
from torch._decomp import get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from mova_engine.backend import get_backend
from mova_engine.ops import OPERATORS, bind, bind_operator, half_products
from mova_engine.ops.fp8_impl import scaled_mm, scaled_mm_check
from mova_engine.ops.linear_impl import accumulating_lora, augmented_lora, epilogue_gelu
from mova_engine.ops.reference import quantize_rows_reference
from mova_engine.ops.testing.cases import cases_of

CPU = get_backend("cpu")


def _case(operator, name="nano", dtype=torch.float32):
    case = next(case for case in cases_of(OPERATORS[operator]) if case.name == name)
    return case.make(torch.Generator().manual_seed(1), torch.device("cpu"), dtype)


def test_the_epilogue_on_a_gpu_is_the_tanh_form_of_gelu():
    """torch's own account of the operator says so; on a CPU the same call is the exact form, and not offered."""
    table = get_decompositions([torch.ops.aten._addmm_activation])
    found = {}
    for device in ("cpu", "cuda"):
        with FakeTensorMode(allow_non_fake_inputs=True):
            inputs = [torch.empty(shape, device=device) for shape in ((2, 3, 8), (4, 8), (4,))]
            graph = make_fx(epilogue_gelu, decomposition_table=table)(*inputs).graph
        gelu = next(node for node in graph.nodes if node.target == torch.ops.aten.gelu.default)
        found[device] = gelu.kwargs.get("approximate", "none")
    assert found == {"cpu": "none", "cuda": "tanh"}
    entry = next(e for e in OPERATORS["linear_gelu"].implementations if e.name == "epilogue")
    assert entry.devices == ("cuda",) and not entry.differentiable


def test_the_epilogue_adds_the_bias_and_keeps_the_shape():
    inputs = _case("linear_gelu")
    expected = F.gelu(F.linear(inputs["x"], inputs["weight"], inputs["bias"]))
    torch.testing.assert_close(epilogue_gelu(**inputs), expected)


def test_inference_prefers_what_keeps_nothing_where_it_exists():
    names = [e.name for e in OPERATORS["linear_gelu"].implementations]
    assert names.index("epilogue") < names.index("triton")
    _, choice = bind_operator(OPERATORS["linear_gelu"], CPU, "onednn", training=False, dtypes=(torch.float32,))
    assert choice.implementation == "onednn"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_makes_no_activation_of_its_own(dtype, monkeypatch):
    """Forward: the product, and x A^T [n, r]. Backward: dx, and g B [n, r]. Beside these nothing of activation size."""
    monkeypatch.setattr(half_products, "SLOW_HERE", False)
    inputs = _case("lora_linear", "wide", dtype)
    inputs = {n: x.repeat(1, 40, 1).requires_grad_() if n == "x" else x for n, x in inputs.items()}
    inputs["lora_a"].requires_grad_(), inputs["lora_b"].requires_grad_()
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            made.extend(x.data_ptr() for x in (out,) if isinstance(x, torch.Tensor) and x.numel() >= 200 * 160)
            return out

    known = {x.data_ptr() for x in inputs.values() if isinstance(x, torch.Tensor)}
    with Watch():
        out = accumulating_lora(**inputs)
        forward = set(made) - known
        made.clear()
        g = torch.ones_like(out)
        gradients = torch.autograd.grad(out, [inputs["x"], inputs["lora_a"], inputs["lora_b"]], g)
    assert forward == {out.data_ptr()}
    backward = set(made) - known - {out.data_ptr(), g.data_ptr()}
    assert backward == {gradients[0].data_ptr()}


@pytest.mark.parametrize("lora", [accumulating_lora, augmented_lora])
def test_an_adapter_keeps_x_and_its_low_rank_image(lora):
    inputs = _case("lora_linear")
    inputs = {n: x.requires_grad_() if isinstance(x, torch.Tensor) else x for n, x in inputs.items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        lora(**inputs)
    known = {x.data_ptr() for x in inputs.values() if isinstance(x, torch.Tensor)}
    assert [list(x.shape) for x in saved if x.data_ptr() not in known] == [[2 * 69, 16]]


@pytest.mark.parametrize("case", ["nano", "wide", "odd"])
def test_an_augmented_adapter_is_one_product_each_way(case):
    """Beside the base's own product, grown by the adapter's channels, only products with a side of rank remain."""
    inputs = _case("lora_linear", case)
    (o, i), (r, _) = inputs["weight"].shape, inputs["lora_a"].shape
    inputs["x"].requires_grad_(), inputs["lora_a"].requires_grad_(), inputs["lora_b"].requires_grad_()
    n = inputs["x"].shape[:-1].numel()
    products = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                products.append((args[-2].shape[0], args[-2].shape[1], args[-1].shape[1]))
            return function(*args, **kwargs or {})

    with Watch():
        out = augmented_lora(**inputs)
        out.sum().backward()

    def up(k):
        return -(-(k + r) // 8) * 8

    assert sorted(products) == sorted([(n, i, r), (n, up(i), o), (n, o, r), (n, up(o), i), (r, n, i), (o, n, r)])


def test_an_augmented_adapter_smaller_than_the_weights_steps_is_not_lost():
    """In bfloat16, where a merge would round it away."""
    inputs = _case("lora_linear", "wide", torch.bfloat16) | {"bias": None}
    weight = inputs["weight"].double()
    inputs["lora_b"] = inputs["lora_b"] * 2e-4
    update = inputs["scale"] * (inputs["lora_b"].double() @ inputs["lora_a"].double())
    merged = (weight + update).bfloat16()
    assert (merged == inputs["weight"]).double().mean() > 0.9
    # Two channels of the input whose products with the weight cancel: what is left is the adapter's, here where that is
    # largest.
    left = update[:, 0] * weight[:, 1] - update[:, 1] * weight[:, 0]
    row = left.abs().argmax()
    first, second = weight[row, :2]
    inputs["x"] = torch.zeros_like(inputs["x"])
    inputs["x"][0, 0, 0], inputs["x"][0, 0, 1] = second, -first
    expected = left[row]
    found = augmented_lora(**inputs)[0, 0, row].double()
    assert abs(found - expected) < 0.02 * abs(expected)


@pytest.mark.parametrize("lora", [accumulating_lora, augmented_lora])
def test_frozen_weights_get_no_gradient(lora):
    inputs = _case("lora_linear")
    inputs["x"].requires_grad_(), inputs["lora_b"].requires_grad_()
    lora(**inputs).sum().backward()
    assert inputs["x"].grad is not None and inputs["lora_b"].grad is not None
    assert all(inputs[name].grad is None for name in ("weight", "bias", "lora_a"))


def test_rows_in_fp8_are_near_and_survive_any_size():
    x = torch.randn(4, 33, 64) * torch.logspace(-30, 30, 33)[:, None]
    x[0, 0] = 0
    values, scale = quantize_rows_reference(x)
    assert (values.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.float32, (4, 33, 1))
    # Three bits of mantissa: half a step is 1/16 of the value, and of the row's largest 2^-10 / 448 below the normals.
    allowed = x.abs() / 16 + x.abs().amax(-1, keepdim=True) * 2**-10 / 448
    assert bool(((values.float() * scale - x).abs() <= allowed * 1.0001).all())
    assert not values[0, 0].float().any() and values.float().abs().amax() == 448


@pytest.mark.skipif(scaled_mm_check(CPU) is not None, reason=str(scaled_mm_check(CPU)))
def test_an_update_smaller_than_the_weights_steps_is_not_lost():
    """What a merge into the weight would round away: an adapter a thousandth of the weight's size."""
    inputs = _case("fp8_linear", "wide", torch.bfloat16)
    inputs["lora_b"] = inputs["lora_b"] * 1e-3
    without = scaled_mm(**inputs | {"lora_a": None, "lora_b": None})
    x, scale = inputs["x"].double(), inputs["weight_scale"].double().unsqueeze(1)
    update = inputs["scale"] * (inputs["lora_b"].double() @ inputs["lora_a"].double())
    weight = inputs["weight"].double() * scale
    merged = ((weight + update) / scale).float().to(torch.float8_e4m3fn)
    lost = (merged.double() == inputs["weight"].double()).float().mean()
    assert lost > 0.9
    difference = (scaled_mm(**inputs).double() - without.double()).flatten()
    expected = (x @ update.T).flatten()
    assert torch.nn.functional.cosine_similarity(difference, expected, dim=0) > 0.5


def test_a_bound_table_has_the_new_operators():
    table = bind(CPU)
    x = torch.randn(1, 3, 32).bfloat16()
    values, scale = table.quantize_rows(torch.randn(16, 32))
    out = table.fp8_linear(x, values, scale.squeeze(1), None, None, None, scale=1.0)
    assert (out.shape, out.dtype) == ((1, 3, 16), torch.bfloat16)
