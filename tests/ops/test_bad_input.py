"""Bad input: every implementation that runs here works or refuses in one line with the argument's name; never a crash.

The Triton kernels' refusals are among the checks in tests/triton_kernels.
"""

import pytest
import torch

from mova_engine.backend import describe_backend, get_backend
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, REFERENCE, bind, bind_operator, refusal, torch_dtypes
from mova_engine.ops.registry import ThisMachine
from mova_engine.ops.testing.cases import cases_of

CPU = get_backend("cpu")
REFUSALS = (MovaError, TypeError, ValueError)


def _runnable():
    """(operator, implementation's name, dtype) of what is neither a reference nor compiled from one."""
    for operator in OPERATORS.values():
        for entry in operator.implementations:
            if operator.kind != "function" or not entry.automatic:
                continue
            if not refusal(operator, entry, CPU, training=False, dtypes=torch_dtypes(entry)[:1]):
                yield pytest.param(operator, entry, id=f"{operator.name}-{entry.name}")


RUNNABLE = list(_runnable())


def _inputs(operator, entry):
    case = next(case for case in cases_of(operator) if case.name == "nano" or case.name == "odd-length")
    return case.make(torch.Generator().manual_seed(0), torch.device("cpu"), torch_dtypes(entry)[0])


def _function(operator, entry):
    return bind_operator(operator, CPU, entry.name, training=False, dtypes=torch_dtypes(entry)[:1])[0]


def _tensors(inputs):
    return [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]


def _refused(function, inputs, name):
    with pytest.raises(REFUSALS) as caught:
        function(**inputs)
    message = str(caught.value)
    assert "\n" not in message and name in message, message


def test_there_is_something_to_judge():
    found = {param.values[0].name for param in RUNNABLE}
    assert {"rms_norm", "lora_linear", "fp8_linear", "attention", "attention_backward"} <= found


@pytest.mark.parametrize(("operator", "entry"), RUNNABLE)
def test_integers_are_refused(operator, entry):
    inputs = _inputs(operator, entry)
    first = _tensors(inputs)[0]
    _refused(_function(operator, entry), inputs | {first: inputs[first].int()}, first)


@pytest.mark.parametrize(("operator", "entry"), RUNNABLE)
def test_a_dtype_that_is_not_declared_is_refused(operator, entry):
    inputs = _inputs(operator, entry)
    first = _tensors(inputs)[0]
    _refused(_function(operator, entry), inputs | {first: inputs[first].to(torch.complex64)}, first)


@pytest.mark.parametrize(("operator", "entry"), RUNNABLE)
def test_mixed_devices_are_refused(operator, entry):
    inputs = _inputs(operator, entry)
    for name in _tensors(inputs)[1:]:
        _refused(_function(operator, entry), inputs | {name: inputs[name].to("meta")}, name)


@pytest.mark.parametrize(("operator", "entry"), RUNNABLE)
def test_a_shape_that_does_not_fit_is_refused(operator, entry):
    inputs = _inputs(operator, entry)
    for name in _tensors(inputs)[1:]:
        wrong = inputs[name][..., :-1] if inputs[name].dim() else inputs[name].unsqueeze(0)
        _refused(_function(operator, entry), inputs | {name: wrong}, name)


@pytest.mark.parametrize(("operator", "entry"), RUNNABLE)
def test_memory_of_any_layout_gives_the_same(operator, entry):
    inputs = _inputs(operator, entry)
    spread = {name: torch.stack([inputs[name]] * 2, -1)[..., 0] for name in _tensors(inputs)}
    assert not any(x.is_contiguous() for x in spread.values() if x.numel() > 1)
    function = _function(operator, entry)
    found, expected = function(**inputs | spread), function(**inputs)
    for ours, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
        # Products of other strides may be summed in another order.
        torch.testing.assert_close(ours, theirs, rtol=2e-5 if ours.dtype == torch.float32 else 2**-7, atol=1e-5)


# The axis of tokens: all of these go to zero.
_TOKENS = {"x": 1, "y": 1, "cos": 0, "sin": 0, "q": 1, "dout": 1, "out": 1, "lse": 2}


@pytest.mark.parametrize(("operator", "entry"), RUNNABLE)
def test_no_tokens_give_empty_results_and_gradients(operator, entry):
    inputs = _inputs(operator, entry)
    empty = {name: inputs[name].narrow(axis, 0, 0) for name, axis in _TOKENS.items() if name in inputs}
    inputs |= empty
    wanted = entry.differentiable and operator.differentiable
    leaves = {n: inputs[n].detach().requires_grad_() for n in wanted or () if inputs[n] is not None}
    expected = operator.reference(**inputs)
    found = _function(operator, entry)(**inputs | leaves)
    pairs = list(zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True))
    for ours, theirs in pairs:
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if leaves:
        gradients = torch.autograd.grad(sum(x.sum() for x, _ in pairs), list(leaves.values()))
        assert all(g.shape == x.shape and not g.any() for g, x in zip(gradients, leaves.values(), strict=True))


@pytest.mark.parametrize("name", [e.name for e in OPERATORS["attention"].implementations])
def test_an_odd_head_dimension_works_or_is_refused(name):
    entry = next(e for e in OPERATORS["attention"].implementations if e.name == name)
    reason = refusal(OPERATORS["attention"], entry, CPU, training=True)
    if reason:
        pytest.skip(f"{name}: {reason}")
    q, k, v = (torch.randn(2, n, 3, 33) for n in (5, 7, 7))
    found = bind(CPU, {"attention": name}).attention(q, k, v)
    torch.testing.assert_close(found, OPERATORS["attention"].reference(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda", "npu"])
def test_a_forced_implementation_that_cannot_serve_says_why(device):
    backend = describe_backend(device)
    refused = 0
    for operator in OPERATORS.values():
        for entry in operator.implementations:
            automatic = entry.automatic
            reason = refusal(operator, entry, backend, True) if automatic else entry.refusal(ThisMachine(backend), True)
            if reason is None:
                continue
            refused += 1
            assert "\n" not in reason
            with pytest.raises(MovaError) as caught:
                bind(backend, {operator.name: entry.name})
            assert (
                str(caught.value) == f"operator {operator.name}: implementation '{entry.name}' cannot serve: {reason}"
            )
    assert refused


def test_the_reference_is_never_refused():
    table = bind(CPU, dict.fromkeys(OPERATORS, REFERENCE))
    assert {choice.implementation for choice in table.choices} == {REFERENCE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(17, 32).to(torch.float8_e4m3fn), "weight_scale": torch.ones(17)}, "multiples of 16"),
        ({"weight": torch.ones(16, 32).bfloat16()}, "must be float8_e4m3fn"),
        ({"weight_scale": torch.ones(15)}, "weight_scale a float32 scale for each row"),
        ({"lora_a": None}, "go together"),
        ({"x": torch.ones(1, 2, 32)}, "takes bfloat16"),
    ],
)
def test_fp8_says_what_it_needs(change, message):
    from mova_engine.ops.fp8_impl import scaled_mm

    x, weight = torch.ones(1, 2, 32).bfloat16(), torch.ones(16, 32).to(torch.float8_e4m3fn)
    a, b = torch.ones(4, 32).bfloat16(), torch.ones(16, 4).bfloat16()
    inputs = {"x": x, "weight": weight, "weight_scale": torch.ones(16), "bias": None, "lora_a": a, "lora_b": b}
    with pytest.raises(MovaError, match=message):
        scaled_mm(**inputs | change, scale=1.0)
