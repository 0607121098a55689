"""Operators on tensors without data: results, what is kept and what is refused, as the implementations have it."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, Implementation, resolve
from mova_engine.ops.fakes import fake_function, fake_table
from mova_engine.ops.native_check import cpu as native_absent
from mova_engine.ops.registry import Choice
from mova_kernels.npu.shapes import define
from source_tree import ROOT

FUNCTIONS = [name for name, operator in OPERATORS.items() if operator.kind == "function"]
PLAIN = dict.fromkeys(("nf4_linear", "int8_linear", "gguf_linear"), "dequantise") | {"newton_schulz": "batched"}
# Those that a machine of each kind binds first.
MACHINES = {
    "cuda": {"attention": "flash-attn-3", "attention_lse": "flash-attn-3", "attention_backward": "flash-attn-3"}
    | dict.fromkeys(FUNCTIONS[:8], "triton")
    | {"linear_gelu": "triton", "lora_linear": "accumulate", "quantize_rows": "triton", "merge_lse": "triton"}
    | {"fp8_linear": "scaled-mm-triton", "fp8_trained_linear": "scaled-mm-triton"}
    | PLAIN,
    "npu": dict.fromkeys((*FUNCTIONS[:9], "attention", "attention_lse", "attention_backward", "merge_lse"), "npu")
    | {"lora_linear": "accumulate", "quantize_rows": "reference"}
    | {"fp8_linear": "reference", "fp8_trained_linear": "reference"}
    | PLAIN
    | {"int8_linear": "npu"},
}


def _run(operator, function, inputs):
    """Outputs, gradients and distinct bytes kept for the backward beside the inputs."""
    leaves = [inputs[name].requires_grad_() for name in operator.differentiable if inputs[name] is not None]
    given = {x.untyped_storage()._cdata for x in inputs.values() if isinstance(x, torch.Tensor)}
    kept = {}

    def pack(x):
        if x.untyped_storage()._cdata not in given:
            kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs]) if leaves else ()
    return outputs, grads, sum(kept.values())


def _facts(tensors):
    return [(x.shape, x.dtype) for x in tensors]


def _example(name, dtype=torch.bfloat16):
    return OPERATORS[name].example(torch.Generator().manual_seed(0), torch.device("cpu"), dtype)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operator_has_the_references_results(name, machine):
    operator = OPERATORS[name]
    expected, gradients, _ = _run(operator, operator.reference, _example(name))
    function = fake_function(operator, MACHINES[machine][name])
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs, grads, _ = _run(operator, function, _example(name))
    assert _facts(outputs) == _facts(expected)
    assert _facts(grads) == _facts(gradients)


@pytest.mark.skipif(native_absent(None) is not None, reason="the native library is not built")
@pytest.mark.parametrize("changed", [{}, {"gate": None}])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "native" in OPERATORS[name].choices()])
def test_what_is_kept_is_what_the_native_kernels_keep(name, changed):
    operator = OPERATORS[name]

    def inputs():
        found = _example(name)
        return found | {key: value for key, value in changed.items() if key in found}

    native = next(each for each in operator.implementations if each.name == "native")
    _, _, expected = _run(operator, resolve(native.target), inputs())
    with FakeTensorMode():
        _, _, found = _run(operator, fake_function(operator, "native"), inputs())
    assert found == expected


def test_a_table_of_an_assumed_machine_runs_on_tensors_without_data():
    choices = [Choice(name, implementation) for name, implementation in MACHINES["npu"].items()]
    with FakeTensorMode():
        table = fake_table("npu", choices)
        x, up, down = torch.empty(1, 5, 8, requires_grad=True), torch.empty(16, 8), torch.empty(8, 16)
        table.feed_forward(x, up, torch.empty(16), down, torch.empty(8)).sum().backward()
    assert x.grad.shape == x.shape and table.device == "npu"


def test_inference_kernels_have_results_alone():
    operator = OPERATORS["norm_modulate"]
    with FakeTensorMode(), torch.no_grad():
        inputs = _example("norm_modulate")
        assert fake_function(operator, "mindie")(**inputs).shape == inputs["x"].shape


def test_an_implementation_without_a_declaration_is_refused():
    own = OPERATORS["rms_norm"].with_implementation(Implementation("own", "somewhere:rms_norm"))
    with pytest.raises(MovaError, match="rms_norm: of implementation 'own' nothing is declared .* add a FakeForm"):
        fake_function(own, "own")
    with pytest.raises(MovaError, match="attention: of implementation 'sdpa-math' nothing is declared"):
        fake_function(OPERATORS["attention"], "sdpa-math")  # holds the scores of all pairs
    with pytest.raises(MovaError, match="has no implementation 'other'"):
        fake_function(OPERATORS["rms_norm"], "other")


def test_every_vendors_operator_that_kernels_call_has_shapes():
    """What `mova_kernels.npu` calls runs on tensors without data; attention there is a `FakeForm`."""
    define()
    sources = "\n".join(path.read_text() for path in (ROOT / "kernels/npu").glob("*.py"))
    called = set(re.findall(r"torch\.ops\.((?:npu|mindiesd)\.\w+)", sources))
    missing = {name for name in called if not hasattr(getattr(torch.ops, name.split(".")[0]), name.split(".")[1])}
    assert len(called) > 8
    assert missing == {"npu.npu_fusion_attention", "npu.npu_fusion_attention_grad"}
