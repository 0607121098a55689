"""Binding: choices that must be met, refusals with their reasons, tables that a caller extends."""

import dataclasses
import re
import sys
import types

import pytest
import torch

from mova_engine.backend import describe_backend, get_backend
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, Implementation, bind, bind_operator
from mova_engine.ops.__main__ import main
from source_tree import python_files

CPU = get_backend("cpu")


def halved_rms_norm(x, weight, *, eps):
    return OPERATORS["rms_norm"].reference(x, weight, eps=eps) / 2


def refuse(backend):
    return "it is Sunday"


HERE = f"{__name__}"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def test_automatic_choice_takes_the_first_that_can_serve_and_keeps_the_reasons():
    _, choice = bind_operator(OPERATORS["rms_norm"], describe_backend("npu"))
    assert choice.implementation == "reference"
    refused = dict(choice.refused)
    assert tuple(refused) + ("reference",) == OPERATORS["rms_norm"].choices()
    assert refused["torch"] == "runs on cpu or cuda, not on npu"


def test_an_explicit_choice_is_met():
    table = bind(CPU, {"attention": "reference"})
    assert table.attention is OPERATORS["attention"].reference
    assert next(c for c in table.choices if c.operator == "attention").implementation == "reference"


def test_one_word_binds_every_reference():
    table = bind(CPU, "reference")
    assert all(table.functions[name] is operator.reference for name, operator in OPERATORS.items())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"attentoin": "sdpa"}, "unknown operator 'attentoin'. Did you mean 'attention'"),
        ({"attention": "sdqa"}, "no implementation 'sdqa'. Did you mean 'sdpa'"),
        ({"attention_lse": "flash-cuda"}, "'flash-cuda' cannot serve: runs on cuda, not on cpu"),
        ("fast", "can only be 'reference'"),
    ],
)
def test_a_choice_that_cannot_be_met_says_why(choices, message):
    with pytest.raises(MovaError, match=message):
        bind(CPU, choices)


def test_a_caller_adds_an_implementation_which_is_then_preferred():
    mine = Implementation("halved", f"{HERE}:halved_rms_norm")
    operators = OPERATORS | {"rms_norm": OPERATORS["rms_norm"].with_implementation(mine)}
    table = bind(CPU, operators=operators)
    x, weight = torch.randn(1, 2, 8), torch.ones(8)
    torch.testing.assert_close(table.rms_norm(x, weight, eps=1e-6), halved_rms_norm(x, weight, eps=1e-6))
    with pytest.raises(MovaError, match="already has an implementation named 'torch'"):
        OPERATORS["rms_norm"].with_implementation(Implementation("torch", "x:y"))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"needs": ("no_such_package",)}, "the package no_such_package is not installed"),
        ({"needs": ("pretender:FusedAdam",)}, "the installed package pretender has no FusedAdam"),
        ({"check": f"{HERE}:refuse"}, "it is Sunday"),
        ({"differentiable": False}, "has no gradient"),
    ],
)
def test_refusals(monkeypatch, fields, reason):
    pretender = types.ModuleType("pretender")
    pretender.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "pretender", pretender)
    entry = dataclasses.replace(Implementation("mine", f"{HERE}:halved_rms_norm"), **fields)
    operator = OPERATORS["rms_norm"].with_implementation(entry)
    _, usual = bind_operator(OPERATORS["rms_norm"], CPU)
    _, choice = bind_operator(operator, CPU)
    assert choice.implementation == usual.implementation
    assert reason in dict(choice.refused)["mine"]
    with pytest.raises(MovaError, match="cannot serve"):
        bind_operator(operator, CPU, "mine")


def no_bfloat16(x, weight, *, eps):
    if x.dtype == torch.bfloat16:
        raise RuntimeError("could not create a primitive. Run it with advice.\nat line 3")
    return halved_rms_norm(x, weight, eps=eps)


def no_gradient_in_bfloat16(x, weight, *, eps):
    out = halved_rms_norm(x, weight, eps=eps)
    if x.dtype == torch.bfloat16 and out.requires_grad:
        out.register_hook(lambda grad: no_bfloat16(grad, weight, eps=eps))
    return out


@pytest.mark.parametrize("target", ["no_bfloat16", "no_gradient_in_bfloat16"])
def test_what_the_cpu_does_not_run_is_refused_with_its_words(target):
    entry = Implementation("mine", f"{HERE}:{target}")
    operator = OPERATORS["rms_norm"].with_implementation(entry)
    _, choice = bind_operator(operator, CPU)
    reason = "fails on this CPU in bfloat16: could not create a primitive"
    assert choice.implementation != "mine" and dict(choice.refused) == {"mine": reason}
    with pytest.raises(MovaError) as caught:
        bind_operator(operator, CPU, "mine")
    assert str(caught.value) == f"operator rms_norm: implementation 'mine' cannot serve: {reason}"
    # Of use to a caller who computes in float32 alone; without gradients, also where only the backward fails.
    assert bind_operator(operator, CPU, dtypes=(torch.float32,))[1].implementation == "mine"
    forward = bind_operator(operator, CPU, training=False)[1].implementation
    assert (forward == "mine") == (target == "no_gradient_in_bfloat16")


def test_an_implementation_that_is_wrong_rather_than_absent_is_not_passed_over():
    """Only what the machine lacks is a refusal: a fault of the implementation's own must be seen."""
    entry = Implementation("mine", f"{HERE}:refuse")  # takes other arguments
    with pytest.raises(TypeError):
        bind_operator(OPERATORS["rms_norm"].with_implementation(entry), CPU)


def test_a_compiler_that_fails_is_a_refusal(monkeypatch):
    def compile(function, fullgraph):
        raise RuntimeError("CppCompileError: C++ compile error\nmain.cpp:19:41: error: 'at::vec' has not been declared")

    monkeypatch.setattr(torch, "compile", compile)
    from mova_engine.ops import compiled

    reason = compiled.compiles_here.__wrapped__()
    assert reason == "torch.compile fails on this CPU: 'at::vec' has not been declared"


def test_kernels_that_the_environment_asks_for_and_the_cpu_lacks_are_an_error(monkeypatch):
    from mova_kernels.cpu import isas, native, unavailable

    if unavailable() is None:
        monkeypatch.setenv("MOVA_CPU_ISA", "avx1024")
        reason = native.unavailable.__wrapped__()
        assert reason == f"MOVA_CPU_ISA asks for avx1024 kernels; it can name one of {', '.join(isas())} on this CPU"
        monkeypatch.setattr("mova_kernels.cpu.unavailable", lambda: reason)
        with pytest.raises(MovaError, match="asks for avx1024 kernels"):
            bind(CPU)
    monkeypatch.setenv("MOVA_CPU_ISA", "baseline")
    monkeypatch.setattr("mova_kernels.cpu.unavailable", lambda: "mova_kernels._C is not built")
    with pytest.raises(MovaError, match=r"MOVA_CPU_ISA is set, but mova_kernels\._C is not built"):
        bind(CPU)


def test_what_compiles_for_seconds_serves_only_when_named():
    mine = Implementation("mine", f"{HERE}:halved_rms_norm", automatic=False)
    operator = OPERATORS["rms_norm"].with_implementation(mine)
    _, choice = bind_operator(operator, CPU)
    assert dict(choice.refused)["mine"] == "is used only when named" and choice.implementation != "mine"
    _, choice = bind_operator(operator, CPU, "mine")
    assert choice.implementation == "mine"
    compiled = [e for o in OPERATORS.values() for e in o.implementations if e.name == "compile"]
    assert len(compiled) > 8 and not any(e.automatic for e in compiled)


def test_each_fused_operator_has_two_implementations_beside_the_reference():
    optimizers = ("adamw", "adamw_8bit", "clip_grad_norm")
    for name, operator in OPERATORS.items():
        training = [e.name for e in operator.implementations if "cuda" in e.devices or not e.devices]
        training = [n for n in training if n != "epilogue"]
        # No package's 8-bit step has this one's blocks, and so its checkpoints; Newton-Schulz is products alone.
        assert len(training) >= 2 - (name in ("adamw_8bit", "newton_schulz")), (name, training)
        on_cpu = [e.name for e in operator.implementations if "cpu" in e.devices or not e.devices]
        assert on_cpu or name in optimizers, name


def test_inference_kernels_serve_when_no_gradient_is_needed():
    entry = Implementation("mine", f"{HERE}:halved_rms_norm", differentiable=False)
    _, choice = bind_operator(OPERATORS["rms_norm"].with_implementation(entry), CPU, training=False)
    assert choice.implementation == "mine"


def test_a_table_is_frozen_and_can_be_derived():
    table = bind(CPU)
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.attention = None
    wrapped = table.replaced(attention=refuse)
    assert wrapped.attention is refuse
    assert table.attention is not refuse
    with pytest.raises(MovaError, match="unknown operator 'atention'"):
        table.replaced(atention=refuse)


@pytest.mark.parametrize("device", ["cpu", "cuda", "npu"])
def test_the_printed_table_names_every_operator_and_reason(device, capsys):
    assert main(["--device", device]) == 0
    printed = capsys.readouterr().out
    for name in OPERATORS:
        assert f"{name} " in printed
    if device != "npu":
        assert "also" in printed
    else:
        assert "not torch: runs on cpu or cuda, not on npu" in printed


def test_the_table_names_the_vendors_functions_behind_an_implementation(capsys):
    """Without torch_npu too; the names are those that the code calls."""
    main(["--device", "npu"])
    lines = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("attention "))
    assert any("npu (npu_fusion_attention)" in line for line in lines[begin : begin + 16])
    entries = [e for o in OPERATORS.values() for e in o.implementations if e.devices == ("npu",)]
    assert all(entry.calls for entry in entries)
    # Shapes of what those functions call in turn are declared in a file of their own.
    text = "".join(path.read_text() for path in python_files("kernels/npu") if path.name != "shapes.py")
    called = set(re.findall(r"torch\.ops\.npu\.(\w+)", text))
    named = {call for entry in entries for call in entry.calls}
    assert called == {name for name in named if name.startswith("npu_")}
    assert all(re.search(rf"\b{re.escape(name)}\b", text) for name in named)


def test_without_the_native_library_its_reason_is_kept_and_the_next_serves(monkeypatch):
    monkeypatch.setattr("mova_kernels.cpu.unavailable", lambda: "mova_kernels._C is not built")
    monkeypatch.delenv("MOVA_CPU_ISA", raising=False)  # who asks for an instruction set is refused another kernel
    table = bind(CPU)
    chosen = {choice.operator: choice for choice in table.choices}
    assert chosen["rms_norm"].implementation == "torch"
    assert chosen["norm_modulate"].implementation == "reference"
    assert dict(chosen["norm_modulate"].refused)["native"] == "mova_kernels._C is not built"
    with pytest.raises(MovaError, match="'native' cannot serve: mova_kernels._C is not built"):
        bind(CPU, {"norm_modulate": "native"})


def test_an_unknown_device_suggests():
    with pytest.raises(MovaError, match="unknown device 'cdua'. Did you mean 'cuda'"):
        main(["--device", "cdua"])
