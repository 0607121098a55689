"""Passes over memory on the emulated NPU: of torch_npu's compositions call by call, and of Triton's kernels."""

import pytest
import torch
from models.passes import PassCounter, operator_passes
from triton_kernels.kernel_passes import ACCESSES, Counted, count_passes

from mova_engine.ops import OPERATORS, bind, refusal, resolve

pytestmark = pytest.mark.npu

ENTRIES = {
    name: entry
    for name, operator in OPERATORS.items()
    for entry in operator.implementations
    if entry.name == "npu" and operator.least and not name.startswith("linear")
}
# The residuals of a block with the norms that follow them, and whether they have a gate: after attention, after
# cross-attention, and after the feed-forward.
RESIDUALS = (
    ("gate_residual_norm", True),
    ("gate_residual_norm_modulate", False),
    ("gate_residual_norm_modulate", True),
)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("name", ENTRIES)
def test_declared_passes_are_those_that_are_counted(npu, name, gate):
    if not gate and not name.startswith("gate"):
        pytest.skip("has no gate")
    operator = OPERATORS[name]
    counted = operator_passes(operator, resolve(ENTRIES[name].target), npu.device(), gate)
    assert counted == operator.passes("npu").of(gate)


@pytest.mark.parametrize("trained", [True, False])
def test_gelu_behind_a_product_makes_the_passes_that_are_declared(npu, trained):
    """The product adds the bias; the gradient of a trained one is a sum of its own."""
    (declared,) = (entry.of_sum for entry in OPERATORS["bias_gelu"].implementations if entry.name == "npu")
    ops, device = bind(npu, {"bias_gelu": "npu"}), npu.device()
    x, weight, bias = (
        torch.randn(shape, dtype=torch.bfloat16, device=device) for shape in ((1, 96, 64), (512, 64), 512)
    )
    leaves = [x, bias] if trained else [x]
    for leaf in leaves:
        leaf.requires_grad_()
    with PassCounter(96 * 512) as forward:
        hidden = ops.gelu_of_product(lambda bias: torch.nn.functional.linear(x, weight, bias), bias)
    cotangent = torch.ones_like(hidden)
    with PassCounter(96 * 512) as backward:
        torch.autograd.grad(hidden, leaves, cotangent)
    one = hidden.numel() * hidden.element_size()
    counted = [(sum(counter.moved.values()) + counter.gelu) / one for counter in (forward, backward)]
    assert counted == [declared.forward, declared.backward + trained]


@pytest.fixture(scope="module")
def triton_passes(npu) -> Counted:
    """Of the Triton kernels with an NPU's tiles, on tensors of the emulated one."""
    pytest.importorskip("triton", reason="the package triton is not installed; `make test-npu` installs it")
    return count_passes("npu", "ascend")


@pytest.mark.parametrize(("name", "gate"), ACCESSES)
def test_triton_s_kernels_make_the_passes_that_are_declared(triton_passes, name, gate):
    found = triton_passes[name, gate]
    assert found.operands == OPERATORS[name].passes("triton").of(gate)
    assert found.accesses == ACCESSES[name, gate]


def _of_a_block(passes: dict[tuple[str, bool], tuple[float, float]]) -> tuple[float, float]:
    """(forward, backward) of the residuals of a block."""
    forward, backward = zip(*(passes[residual] for residual in RESIDUALS), strict=True)
    return sum(forward), sum(backward)


def test_the_residuals_of_a_block_make_few_passes(triton_passes):
    """At most 20 forward and 32 backward are the goal. triton-ascend reaches it even where what is read a second time
    is not found in a cache; torch_npu's compositions do in the backward.
    """
    goal = (20, 32)
    for found in ("operands", "accesses"):
        by_triton = _of_a_block({case: getattr(passes, found) for case, passes in triton_passes.items()})
        assert by_triton == {"operands": (12, 16), "accesses": (18, 22)}[found]
        assert all(passes <= most for passes, most in zip(by_triton, goal, strict=True))
    composed = _of_a_block({(name, gate): OPERATORS[name].passes("npu").of(gate) for name, gate in RESIDUALS})
    assert composed == (30, 24)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("name", ["norm_modulate", "gate_residual_norm_modulate"])
def test_declared_passes_of_mindie(npu, name, gate):
    operator = OPERATORS[name]
    (entry,) = (entry for entry in operator.implementations if entry.name == "mindie")
    if refusal(operator, entry, npu, training=False) or (not gate and name == "norm_modulate"):
        pytest.skip("mindiesd is not installed, or there is no gate")
    counted = operator_passes(operator, resolve(entry.target), npu.device(), gate, training=False)
    assert counted == operator.passes("mindie").of(gate)
