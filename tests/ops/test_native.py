"""The native CPU kernels beyond their values: instruction sets, threads, memory layouts, refusals, torch.compile.

Their values and gradients are judged with every other implementation's in test_operators.py.
"""

import os

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mova_engine.ops import OPERATORS
from mova_engine.ops.testing.cases import cases_of
from mova_kernels.cpu import isa, isas, unavailable, use_isa

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

# Linear layers are torch's products beside a kernel: of their own they have none.
NATIVE = [name for name, operator in OPERATORS.items() if "native" in operator.choices() and "linear" not in name]
DTYPES = (torch.float32, torch.bfloat16)
ones = torch.ones


@pytest.fixture
def native():
    """The module of the native functions."""
    import mova_kernels.cpu.ops as functions

    return functions


@pytest.fixture(autouse=True)
def _same_kernels_afterwards():
    before = isa() if unavailable() is None else None
    yield
    if before:
        use_isa(before)


def _inputs(name, case="odd-length", dtype=torch.float32):
    operator = OPERATORS[name]
    made = next(c for c in cases_of(operator) if c.name == case)
    inputs = made.make(torch.Generator().manual_seed(3), torch.device("cpu"), dtype)
    for key in operator.differentiable:
        if inputs[key] is not None:
            inputs[key] = inputs[key].detach().requires_grad_()
    return inputs


def _run(function, inputs):
    """Outputs and gradients of a call, as a list of tensors."""
    outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    generator = torch.Generator().manual_seed(4)
    cotangents = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in outputs]
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, leaves, cotangents)]


def test_the_eight_operators_on_rows_are_there():
    assert len(NATIVE) == 8


def test_a_library_built_from_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr("mova_kernels.cpu.native._INTERFACE", -1)
    assert "run `make native` again" in unavailable.__wrapped__()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NATIVE)
def test_instruction_sets_agree(native, name, dtype):
    # 13 rows of 256 channels, and 48 channels of head dim: whole vectors, and a rest of each width.
    for case in ("odd-length", "nano"):
        inputs = _inputs(name, case, dtype)
        found = {}
        for which in isas():
            use_isa(which)
            assert isa() == which
            found[which] = _run(getattr(native, name), inputs)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
        for tensors in found.values():
            for ours, baseline in zip(tensors, found["baseline"], strict=True):
                rtol = tolerance[ours.dtype]
                torch.testing.assert_close(ours, baseline, rtol=rtol, atol=rtol * float(baseline.abs().max()))


def test_baseline_kernels_come_first_and_an_unknown_set_is_refused():
    assert isas()[0] == "baseline"
    assert isa() == os.environ.get("MOVA_CPU_ISA", isas()[-1])
    with pytest.raises(ValueError, match=r"no CPU kernels 'avx1024' can run here; this CPU has baseline"):
        use_isa("avx1024")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NATIVE)
def test_the_number_of_threads_changes_no_bit(native, name, dtype):
    build = {"x": (2, 301, 96), "y": (2, 301, 96)}
    inputs = _inputs(name, "nano", dtype)
    for key, shape in build.items():
        if key in inputs:
            inputs[key] = torch.randn(shape).to(dtype).requires_grad_()
    if "cos" in inputs:
        inputs["cos"], inputs["sin"] = torch.randn(2, 301, 24).unbind(0)
    runs = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        runs.append(_run(getattr(native, name), inputs))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("name", NATIVE)
def test_layouts_are_read_in_place_or_copied_never_misread(native, name):
    """Rows of a wider tensor, every other token, a transposed and an expanded tensor give what their copies give."""
    inputs = _inputs(name, "odd-length")
    b, s, d = inputs["x"].shape
    layouts = {
        "wider": torch.randn(b, s, d + 3)[..., 1 : d + 1],
        "every other token": torch.randn(b, 2 * s, d)[:, ::2],
        "transposed": torch.randn(d, s, b).permute(2, 1, 0),
        "tokens first": torch.randn(s, b, d).transpose(0, 1),
        "expanded": torch.randn(1, 1, d).expand(b, s, d),
    }
    for layout, tensor in layouts.items():
        for key in {"x", "y"} & inputs.keys():
            strided = inputs | {key: tensor.detach().requires_grad_()}
            copied = inputs | {key: tensor.detach().contiguous().requires_grad_()}
            for ours, expected in zip(
                _run(getattr(native, name), strided), _run(getattr(native, name), copied), strict=True
            ):
                assert torch.equal(ours, expected), f"{key} {layout}"


@pytest.mark.parametrize("name", NATIVE)
def test_gradients_may_arrive_in_any_layout(native, name):
    """`out.sum()` hands back an expanded scalar."""
    inputs = _inputs(name)
    leaves = [inputs[key] for key in OPERATORS[name].differentiable]

    def gradients(function):
        outputs = function(**inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.autograd.grad(sum(x.sum() for x in outputs), leaves)

    expected = gradients(OPERATORS[name].reference)
    for ours, theirs in zip(gradients(getattr(native, name)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", NATIVE)
def test_no_tokens_give_empty_results_and_zero_parameter_gradients(native, name):
    inputs = _inputs(name)
    for key in {"x", "y"} & inputs.keys():
        inputs[key] = torch.empty(3, 0, 256, requires_grad=True)
    if "cos" in inputs:
        inputs["cos"] = inputs["sin"] = torch.empty(0, 64)
    outputs = 2 if name.startswith("gate_residual_norm") else 1
    tensors = _run(getattr(native, name), inputs)
    assert all(x.shape == (3, 0, 256) for x in tensors[:outputs])
    for x in tensors[outputs:]:
        assert x.numel() == 0 or not x.any()


def test_rounding_to_bfloat16_keeps_infinities_and_nan(native):
    """Rounding by integer arithmetic must turn no NaN into a number, and the largest floats into infinity."""
    bits = (0x7FFFFFFF, 0x7F800001, -1, 0x7F800000, -0x800000, 0x7F7FFFFF, 0, -0x80000000)
    gate = torch.tensor(bits, dtype=torch.int32).view(torch.float32).view(1, 8)
    x, y = torch.zeros(2, 1, 1, 8, dtype=torch.bfloat16)
    for which in isas():
        use_isa(which)
        found = native.gate_residual(x, y + 1, gate)
        torch.testing.assert_close(found[0], (0 + gate).to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("which", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_rounding_to_bfloat16_is_torchs(native, which):
    if which not in isas():
        pytest.skip(f"this CPU has no {which}")
    use_isa(which)
    weight = torch.randn(1024, dtype=torch.float32)
    ones = torch.ones(1, 1, 1024, dtype=torch.bfloat16)
    # A row of ones has rstd 1 when eps is 0: what is stored is the rounded weight.
    assert torch.equal(native.rms_norm(ones, weight, eps=0.0)[0, 0], weight.to(torch.bfloat16))


@pytest.mark.parametrize("head_dim", [16, 24, 40, 64])
@pytest.mark.parametrize("name", ["rms_norm_rope", "gate_residual_norm", "layer_norm"])
def test_activations_larger_than_the_caches(native, name, head_dim):
    """In float32 written past the caches, where heads are whole vectors."""
    inputs = _inputs(name)
    rows, width = 1100, 12 * head_dim * (64 // head_dim)
    for key, value in inputs.items():
        if key in ("cos", "sin"):
            inputs[key] = torch.randn(rows, head_dim // 2)
        elif isinstance(value, torch.Tensor):
            shape = {1: (width,), 2: (1, width), 3: (1, rows, width)}[value.dim()]
            inputs[key] = torch.randn(shape).requires_grad_()
    for ours, expected in zip(
        _run(getattr(native, name), inputs), _run(OPERATORS[name].reference, inputs), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NATIVE)
def test_torch_judges_the_registration(native, name):
    """Schema, fake tensors, autograd and AOT dispatch, for each operator that a function stands on."""
    ops = torch.ops.mova_kernels
    v = _inputs(name, "nano", torch.bfloat16)
    x, eps = v["x"], 1e-6
    scale, shift = v.get("scale", v.get("weight")), v.get("shift", v.get("bias"))
    if name.startswith("rms_norm"):
        operator, arguments = ops.rms_norm_rope_fwd, (x, scale, v.get("cos"), v.get("sin"), eps, True)
    elif name == "bias_gelu":
        operator, arguments = ops.bias_gelu_fwd, (x, v["bias"])
    elif name == "gate_residual":
        operator, arguments = ops.gate_residual_fwd, (x, v["y"], v["gate"])
    elif name.startswith("gate_residual_norm"):
        operator, arguments = ops.gate_residual_norm_fwd, (x, v["y"], v["gate"], scale, shift, eps)
    else:
        operator, arguments = ops.layer_norm_fwd, (x, scale, shift, eps)
    torch.library.opcheck(operator.default, arguments)


@pytest.mark.long
def test_torch_judges_the_backward_operators(native):
    ops = torch.ops.mova_kernels
    x, grad, y = torch.randn(3, 2, 5, 24).unbind(0)
    rstd, mean = torch.rand(2, 5), torch.rand(2, 5)
    cos, sin = torch.randn(2, 5, 4).unbind(0)
    weight, scale, gate = torch.randn(24), torch.randn(2, 24), torch.randn(2, 24)
    calls = [
        (ops.rms_norm_rope_bwd, (grad, x, weight, None, None, rstd, False)),
        (ops.rms_norm_rope_bwd, (grad, x, weight, cos, sin, rstd, False)),
        (ops.layer_norm_bwd, (grad, x, weight, mean, rstd)),
        (ops.layer_norm_bwd, (grad, x, scale, mean, rstd)),
        (ops.gate_residual_bwd, (grad, y, gate)),
        (ops.bias_gelu_bwd, (grad, x, weight)),
        (ops.gate_residual_norm_bwd, (grad, grad, x, y, gate, scale, mean, rstd)),
        (ops.gate_residual_norm_bwd, (grad, grad, x, None, None, weight, mean, rstd)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments)


def test_a_gradient_of_a_gradient_is_refused(native):
    inputs = _inputs("rms_norm")
    (gradient,) = torch.autograd.grad(native.rms_norm(**inputs).square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", NATIVE)
def test_checkpointing_gives_the_same_bits(native, name):
    inputs = _inputs(name)
    function = getattr(native, name)

    def recomputed(**inputs):
        return checkpoint(lambda: function(**inputs), use_reentrant=False)

    for ours, expected in zip(_run(recomputed, inputs), _run(function, inputs), strict=True):
        assert torch.equal(ours, expected)


def test_only_statistics_are_saved_beside_inputs_and_outputs(native):
    inputs = _inputs("gate_residual_norm_modulate", "nano")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        outputs = native.gate_residual_norm_modulate(**inputs)
    known = {x.data_ptr() for x in (*inputs.values(), *outputs) if isinstance(x, torch.Tensor)}
    extra = [x for x in saved if x.data_ptr() not in known]
    assert saved and {tuple(x.shape) for x in extra} <= {inputs["x"].shape[:2]}


def test_gelu_at_the_ends_of_its_range(native):
    """Far to either side the exponential under- or overflows; NaN stays one, and nothing else becomes one."""
    x = torch.tensor([[[torch.nan, 1e30, -1e30, 88.0, -88.0, 10.0, -10.0, 0.0]]], requires_grad=True)
    for which in isas():
        use_isa(which)
        out, gradient, _ = _run(native.bias_gelu, {"x": x, "bias": torch.zeros(8, requires_grad=True)})
        expected = [torch.nan, 1e30, 0.0, 88.0, 0.0, 10.0, 0.0, 0.0]
        torch.testing.assert_close(out[0, 0], torch.tensor(expected), rtol=1e-6, atol=1e-7, equal_nan=True)
        assert gradient[0, 0, 0].isnan() and gradient[0, 0, 1:].isfinite().all()


def test_a_linear_layer_with_gelu_keeps_one_activation(native):
    inputs = _inputs("linear_gelu", "nano")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = native.linear_gelu(**inputs)
    known = {x.data_ptr() for x in inputs.values()}
    extra = {x.data_ptr(): x.shape for x in saved if x.data_ptr() not in known}
    assert list(extra.values()) == [out.shape] and out.data_ptr() not in extra


def test_meta_tensors_give_shapes(native):
    x, weight = torch.empty(2, 5, 24, device="meta", dtype=torch.bfloat16), torch.empty(24, device="meta")
    out = native.rms_norm(x, weight, eps=1e-6)
    assert (out.shape, out.dtype, out.device) == (x.shape, x.dtype, x.device)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("rms_norm", {"x": ones(1, 2, 8, dtype=torch.float64)}, TypeError, "x is Double; .* take float32"),
        ("rms_norm", {"x": ones(2, 8)}, ValueError, r"x must be \[b, s, d\] with d > 0, got \[2, 8\]"),
        ("rms_norm", {"x": ones(1, 2, 0)}, ValueError, "d > 0"),
        ("rms_norm", {"weight": ones(7)}, ValueError, r"weight must be \[d\] .* \[1, 2, 8\], got \[7\]"),
        ("rms_norm", {"weight": ones(8, dtype=torch.int32)}, TypeError, "weight must be floating point"),
        ("rms_norm", {"weight": ones(8, device="meta")}, ValueError, "weight is on meta, x on cpu"),
        ("rms_norm_rope", {"x": ones(1, 2, 9), "weight": ones(9)}, ValueError, "9 is no multiple of .* 4"),
        ("rms_norm_rope", {"cos": ones(3, 2), "sin": ones(3, 2)}, ValueError, r"cos must be \[s, head"),
        ("rms_norm_rope", {"cos": ones(2, 1)}, ValueError, "cos and sin must have one shape"),
        ("norm_modulate", {"scale": ones(8)}, ValueError, r"scale must be \[b, d\], got \[8\]"),
        ("norm_modulate", {"shift": ones(8)}, ValueError, r"shift must be \[b, d\] for activations"),
        ("layer_norm", {"weight": ones(1, 8)}, ValueError, r"weight must be \[d\], got \[1, 8\]"),
        ("layer_norm", {"bias": ones(5)}, ValueError, r"bias must be \[d\] for activations"),
        ("gate_residual", {"y": ones(1, 3, 8)}, ValueError, r"y must have x's shape \[1, 2, 8\], got"),
        ("gate_residual", {"y": ones(1, 2, 8).bfloat16()}, TypeError, "y must have x's dtype Float, got"),
        ("gate_residual", {"gate": ones(2, 8)}, ValueError, r"gate must be \[b, d\]"),
        ("gate_residual_norm", {"y": ones(1, 2, 7)}, ValueError, "y must have x's shape"),
        ("bias_gelu", {"bias": ones(7)}, ValueError, r"bias must be \[d\] .* \[1, 2, 8\], got \[7\]"),
        ("linear_gelu", {"weight": ones(4, 7)}, ValueError, r"weight must be \[o, i\] for x \[1, 2, 8\], got \[4, 7\]"),
        ("linear_gelu", {"weight": ones(4, 8).bfloat16()}, TypeError, "weight must have x's dtype"),
        ("linear_gelu", {"bias": ones(4, device="meta")}, ValueError, "bias is on meta, x on cpu"),
        ("gate_residual_norm_modulate", {"scale": ones(3, 8)}, ValueError, r"scale must be \[b, d\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_in_words(native, name, change, error, message):
    x, vector, row = torch.ones(1, 2, 8), torch.ones(8), torch.ones(1, 8)
    table = torch.ones(2, 2)
    inputs = {
        "rms_norm": {"x": x, "weight": vector, "eps": 1e-6},
        "rms_norm_rope": {"x": x, "weight": vector, "cos": table, "sin": table, "eps": 1e-6, "interleaved": True},
        "norm_modulate": {"x": x, "shift": row, "scale": row, "eps": 1e-6},
        "layer_norm": {"x": x, "weight": vector, "bias": vector, "eps": 1e-6},
        "bias_gelu": {"x": x, "bias": vector},
        "linear_gelu": {"x": x, "weight": torch.ones(4, 8), "bias": torch.ones(4)},
        "gate_residual": {"x": x, "y": x, "gate": row},
        "gate_residual_norm": {"x": x, "y": x, "gate": row, "weight": vector, "bias": vector, "eps": 1e-6},
        "gate_residual_norm_modulate": {"x": x, "y": x, "gate": row, "shift": row, "scale": row, "eps": 1e-6},
    }[name]
    getattr(native, name)(**inputs)
    with pytest.raises(error, match=message):
        getattr(native, name)(**inputs | change)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_compile_keeps_values_and_gradients(native, dtype):
    """One graph of operators around a product, without a break, forward and backward."""
    x, y = torch.randn(2, 2, 7, 32).to(dtype).unbind(0)
    gate, shift, scale = torch.randn(3, 2, 32).unbind(0)
    weight, product = torch.randn(32).to(dtype), torch.randn(32, 32).to(dtype)
    cos, sin = torch.randn(2, 7, 4).unbind(0)

    def block(x, y, gate, shift, scale, weight):
        x, h = native.gate_residual_norm_modulate(x, y, gate, shift, scale, eps=1e-6)
        h = native.rms_norm_rope(h @ product, weight, cos, sin, eps=1e-6, interleaved=True)
        x, h = native.gate_residual_norm(x, h, None, weight, weight, eps=1e-6)
        return native.gate_residual(x, h, gate)

    inputs = [t.detach().requires_grad_() for t in (x, y, gate, shift, scale, weight)]
    inputs = dict(zip(("x", "y", "gate", "shift", "scale", "weight"), inputs, strict=True))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for ours, expected in zip(_run(torch.compile(block, fullgraph=True), inputs), _run(block, inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
