"""The CUDA C++ kernels run on the host, thread by thread (`tests/cuda_host`): values, gradients, races, alignment.

That nvcc compiles the same sources, `test_compile.py` shows; on a GPU `pytest tests/ops --device cuda` judges them like
everything else in the operator table.
"""

import ctypes

import pytest
import torch
from cuda_kernels.host import build

from mova_engine.ops import OPERATORS, inputs
from mova_engine.ops.inputs import Maker
from mova_engine.ops.testing.cases import Case, cases_of
from mova_engine.ops.testing.verify import verify
from mova_kernels.cuda import ops
from mova_kernels.cuda.library import Library
from source_tree import ROOT

pytestmark = pytest.mark.kernels
CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FUNCTIONS = {"rms_norm_rope": ops.rms_norm_rope, "norm_modulate": ops.norm_modulate}
EPS = 1e-6


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    return Library.open(build(sources, tmp_path_factory.mktemp("cuda") / "host.so"), device="cpu")


@pytest.fixture(autouse=True)
def _on_the_host(library, monkeypatch, capfd):
    monkeypatch.setattr(ops, "load", lambda: library)
    yield
    library.functions.cuda_host_descending(0)
    assert "runtime error" not in capfd.readouterr().err


def _judge(name: str, case: Case, dtype: torch.dtype) -> None:
    findings = verify(OPERATORS[name], FUNCTIONS[name], case, CPU, dtype)
    assert findings
    missed = [str(f) for f in findings if not f.passed]
    assert not missed, "; ".join(missed)


def _case(name: str, shape: tuple[int, int, int, int], interleaved: bool = True) -> Case:
    build_inputs = inputs.rms_norm_rope(interleaved) if name == "rms_norm_rope" else inputs.norm_modulate
    return Case("extra", lambda generator, device, dtype: build_inputs(Maker(generator, device, dtype), *shape))


def _run(name: str, inputs: dict) -> list[torch.Tensor]:
    """The output and the gradients of a call, whose floating inputs other than tables are leaves."""
    leaves = [inputs[key] for key in OPERATORS[name].differentiable]
    out = FUNCTIONS[name](**inputs)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def _inputs(name: str, case: Case, dtype: torch.dtype = torch.float32) -> dict:
    inputs = case.make(torch.Generator().manual_seed(3), CPU, dtype)
    return inputs | {key: inputs[key].detach().requires_grad_() for key in OPERATORS[name].differentiable}


CASES = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in FUNCTIONS
    for case in cases_of(OPERATORS[name])
    if case.size == "test"
]


# In float16 by default the widths below.
@pytest.mark.parametrize("dtype", [*DTYPES[:2], pytest.param(DTYPES[2], marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_table_cases_against_float64(name, case, dtype):
    _judge(name, case, dtype)


# Widths of which no row is aligned, and one that is wider than a block can hold; several blocks sum over rows.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 33, 20, 8200])
def test_norm_modulate_at_any_width(width, dtype):
    _judge("norm_modulate", _case("norm_modulate", (1, 5, width, 1)), dtype)


# Head dims of 2, 6 and 20 have no whole vectors (but 20 interleaved in float32); 8,320 is wider than a block can hold.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("shape", [(2, 9, 6, 2), (1, 9, 42, 6), (2, 5, 60, 20), (1, 5, 8320, 128)])
def test_rms_norm_rope_at_any_width_and_head_dim(shape, interleaved, dtype):
    _judge("rms_norm_rope", _case("rms_norm_rope", shape, interleaved), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_layouts_are_read_in_place_or_copied_never_misread(name, dtype):
    inputs = _inputs(name, _case(name, (2, 5, 32, 16)), dtype)
    layouts = {
        "off by one value": torch.randn(2, 5, 33)[..., 1:],
        "rows a little apart": torch.randn(2, 5, 35)[..., :32],
        "every other token": torch.randn(2, 10, 32)[:, ::2],
        "tokens first": torch.randn(5, 2, 32).transpose(0, 1),
        "transposed": torch.randn(32, 5, 2).permute(2, 1, 0),
        "expanded": torch.randn(1, 1, 32).expand(2, 5, 32),
    }
    for layout, tensor in layouts.items():
        x = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype) if 0 not in tensor.stride() else None
        x = tensor.to(dtype).expand(2, 5, 32) if x is None else x.copy_(tensor)
        strided, copied = x.detach().requires_grad_(), x.detach().clone(memory_format=torch.contiguous_format)
        found = _run(name, inputs | {"x": strided})
        for ours, expected in zip(found, _run(name, inputs | {"x": copied.requires_grad_()}), strict=True):
            torch.testing.assert_close(ours, expected, msg=lambda text, layout=layout: f"{layout}: {text}")


def test_a_misaligned_row_takes_the_kernel_that_reads_single_values():
    """The allocation begins at a multiple of 16 bytes, the row 4 bytes later."""
    x = torch.randn(1, 1, 36)[..., 1:33]
    assert x.data_ptr() % 16 == 4
    shift, scale = torch.randn(2, 1, 32).unbind(0)
    expected = OPERATORS["norm_modulate"].reference(x, shift, scale, eps=EPS)
    torch.testing.assert_close(ops.norm_modulate(x, shift, scale, eps=EPS), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_order_of_threads_and_blocks_changes_no_bit(library, name, dtype):
    for shape in ((2, 21, 768, 128), (1, 9, 66, 2)):
        inputs = _inputs(name, _case(name, shape), dtype)
        ascending = _run(name, inputs)
        library.functions.cuda_host_descending(1)
        for ours, expected in zip(_run(name, inputs), ascending, strict=True):
            assert torch.equal(ours, expected)
        library.functions.cuda_host_descending(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_may_arrive_in_any_layout_and_vectors_in_any_dtype(dtype):
    """`out.sum()` hands back an expanded scalar."""
    for name in FUNCTIONS:
        inputs = _inputs(name, _case(name, (2, 5, 32, 16)))
        for key in OPERATORS[name].differentiable[1:]:
            inputs[key] = inputs[key].detach().to(dtype).requires_grad_()
        leaves = [inputs[key] for key in OPERATORS[name].differentiable]
        found = torch.autograd.grad(FUNCTIONS[name](**inputs).sum(), leaves)
        expected = torch.autograd.grad(OPERATORS[name].reference(**inputs).sum(), leaves)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=2**-6 if dtype != torch.float32 else 1e-4, atol=1e-4)


def test_one_modulation_for_all_samples_and_rows_of_a_larger_tensor():
    x, six = torch.randn(3, 5, 64), torch.randn(3, 6, 64)
    reference = OPERATORS["norm_modulate"].reference
    views = six[:, 4], six[:, 1]
    torch.testing.assert_close(ops.norm_modulate(x, *views, eps=EPS), reference(x, *views, eps=EPS))
    results = []
    for function in (ops.norm_modulate, reference):
        shared = [torch.ones(1, 64).requires_grad_(), torch.zeros(1, 64).requires_grad_()]
        out = function(x, *shared, eps=EPS)
        results.append((out, *torch.autograd.grad(out.square().sum(), shared)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_large_mean_keeps_the_variance():
    x = torch.randn(1, 3, 1536) + 1e4
    zero = torch.zeros(1, 1536)
    expected = OPERATORS["norm_modulate"].reference(x.double(), zero, zero, eps=EPS)
    assert (ops.norm_modulate(x, zero, zero, eps=EPS) - expected).abs().max() < 5e-3


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_tokens_give_empty_results_and_zero_gradients(name):
    out, dx, *vectors = _run(name, _inputs(name, _case(name, (2, 0, 64, 16))))
    assert out.shape == dx.shape == (2, 0, 64)
    assert vectors and not any(v.any() for v in vectors)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_statistics_are_saved_beside_the_inputs(name):
    inputs = _inputs(name, _case(name, (2, 5, 32, 16)), torch.bfloat16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        FUNCTIONS[name](**inputs)
    known = {x.data_ptr() for x in inputs.values() if isinstance(x, torch.Tensor)}
    assert saved and {tuple(x.shape) for x in saved if x.data_ptr() not in known} == {(2, 5)}


def test_torch_judges_the_registrations():
    """Schema, fake tensors, autograd and AOT dispatch."""
    for name, operator in (("rms_norm_rope", ops.rms_norm_rope_fwd), ("norm_modulate", ops.norm_modulate_fwd)):
        torch.library.opcheck(operator, (), _inputs(name, _case(name, (1, 3, 32, 16))))
    dout, x = torch.randn(2, 1, 3, 32).unbind(0)
    rstd, mean = torch.rand(2, 1, 3).unbind(0)
    tables = torch.randn(2, 3, 8).unbind(0)
    torch.library.opcheck(ops.rms_norm_rope_bwd, (dout, x, torch.randn(32), *tables, rstd, False))
    torch.library.opcheck(ops.norm_modulate_bwd, (dout, x, *torch.randn(2, 1, 32).unbind(0), mean, rstd))


def test_a_gradient_of_a_gradient_is_refused():
    for name in FUNCTIONS:
        inputs = _inputs(name, _case(name, (1, 3, 32, 16)))
        out = FUNCTIONS[name](**inputs)
        (gradient,) = torch.autograd.grad(out.square().sum(), inputs["x"], create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.sum().backward()


@pytest.mark.parametrize(
    ("name", "changed", "error", "message"),
    [
        ("rms_norm_rope", {"x": torch.Tensor.double}, TypeError, "x is torch.float64; the kernel takes"),
        ("rms_norm_rope", {"x": lambda x: x[0]}, ValueError, r"x must be \[b, s, d\]"),
        ("rms_norm_rope", {"weight": lambda w: w[1:]}, ValueError, r"weight must be \[32\]"),
        ("rms_norm_rope", {"cos": lambda c: c[1:]}, ValueError, r"cos and sin must be \[s, e/2\]"),
        ("rms_norm_rope", {"cos": lambda c: c[:, :0], "sin": lambda c: c[:, :0]}, ValueError, "divisor of 32"),
        ("rms_norm_rope", {"sin": lambda c: c.to("meta")}, ValueError, "sin on meta"),
        ("norm_modulate", {"scale": lambda v: v.repeat(3, 1)}, ValueError, r"scale must be \[2, 32\]"),
        ("norm_modulate", {"shift": lambda v: v.to("meta")}, ValueError, "shift is on meta"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words(name, changed, error, message):
    inputs = _inputs(name, _case(name, (2, 5, 32, 16)))
    with pytest.raises(error, match=f"{name}: .*{message}"):
        FUNCTIONS[name](**inputs | {key: change(inputs[key]) for key, change in changed.items()})


def test_memory_of_another_device_and_a_refused_launch_raise(library):
    x, d = torch.randn(1, 3, 32), torch.zeros(1, 32)
    statistics = x.new_empty(2, 1, 3)
    with pytest.raises(RuntimeError, match=r"norm_modulate_bwd: CUDA refused it: invalid argument \(error 1\)"):
        rows = (x, 96, 32, x, 96, 32, d, 32, *statistics, x, d, d)
        library.launch("norm_modulate_bwd", x.dtype, x, *rows, 1, 3, 32, 4)
    with pytest.raises(ValueError, match=r"x is on cpu; the CUDA C\+\+ kernels run on cuda only"):
        Library(library.functions, device="cuda").launch("column_sums", x.dtype, x, x, x, 1, 3, 32)


def test_the_emulation_sees_races_lanes_that_part_and_misalignment(tmp_path, capfd):
    """Kernels with each fault: without this the tests above would show nothing."""
    source = tmp_path / "faults.cu"
    source.write_text("""
#include "common.cuh"
namespace {
__global__ void race(float* out) {
  __shared__ float values[64];
  values[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = values[63 - threadIdx.x];
}
__global__ void parting(float* out) {
  if (threadIdx.x % 2) out[0] = mova::cuda::warp_sum(1.0f);
}
__global__ void misaligned(float* out) { mova::cuda::Pack<float, 4, true>::load(out + 1).store(out + 5); }
}  // namespace
#define LAUNCH(kernel) MOVA_EXPORT int launch_##kernel(float* out) { \\
  return mova::cuda::launch<float*>(kernel, dim3(1), dim3(64), 0, nullptr, out); }
LAUNCH(race)
LAUNCH(parting)
LAUNCH(misaligned)
""")
    faults = ctypes.CDLL(str(build([source], tmp_path / "faults.so")))
    out = torch.zeros(2, 64)
    for descending in (0, 1):
        faults.cuda_host_descending(descending)
        assert faults.launch_race(ctypes.c_void_p(out[descending].data_ptr())) == 0
    assert not torch.equal(out[0], out[1])
    assert faults.launch_parting(ctypes.c_void_p(out.data_ptr())) == 719
    assert faults.launch_misaligned(ctypes.c_void_p(out.data_ptr())) == 0
    assert "misaligned address" in capfd.readouterr().err
