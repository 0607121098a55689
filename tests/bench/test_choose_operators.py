"""Choices by measurement: what `--choose` judges, times and writes, and how tables are bound by it.

Nothing is timed: the clock is the test's.
"""

import json
import sys
import types
from dataclasses import replace

import pytest
import torch

from mova_engine.backend import get_backend
from mova_engine.bench import choose_operators
from mova_engine.bench.__main__ import main
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, Implementation, Machine, bind, choose, inputs, measured_choices
from mova_engine.ops.__main__ import main as show_operators
from mova_engine.ops.measured_choices import choices_file
from mova_engine.ops.testing import cases
from mova_kernels.cpu import unavailable

CPU = get_backend("cpu")
BFLOAT16 = (torch.bfloat16,)
pytestmark = pytest.mark.skipif(unavailable() is not None, reason="needs two implementations: the library is not built")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Small shapes of RMSNorm, and an empty folder for the choices."""
    small = (
        cases._case("nano", inputs.rms_norm, (2, 9, 96, 48)),
        cases._case("64x96", inputs.rms_norm, (1, 64, 96, 48), "bench"),
    )
    monkeypatch.setitem(cases.CASES, "rms_norm", small)
    monkeypatch.setitem(choose_operators._LAYERS, True, (16, 32))
    monkeypatch.setenv("MOVA_TILES", str(tmp_path))
    measured_choices._warn.cache_clear()
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    """Seconds by implementation, which the test sets; and how often something was timed."""
    seconds, timed = {"native": 2.0, "torch": 1.0, "fused": 1.0, "foreach": 1.01}, []

    def interleave(runs, **options):
        timed.append(tuple(runs))
        return {name: [seconds[name]] for name in runs}

    monkeypatch.setattr(choose_operators, "interleave", interleave)
    return types.SimpleNamespace(seconds=seconds, timed=timed)


def measure(*names: str, dtype: str = "bfloat16") -> int:
    return main(["operators", "--choose", "--dtype", dtype, *(("--op", *names) if names else ())])


def bound(operator: str = "rms_norm", dtypes=BFLOAT16, **options):
    return next(c for c in bind(CPU, dtypes=dtypes, **options).choices if c.operator == operator)


def test_the_fastest_is_written_bound_and_told(clock, capsys):
    assert not bound().measured and bound().implementation == "native"
    measure("rms_norm", "adamw")
    for training in (True, False):
        assert (bound(training=training).implementation, bound(training=training).measured) == ("torch", True)
    # An optimizer computes in float32 whatever the model does. What was not measured stays as declared.
    assert (bound("adamw").implementation, bound("adamw").measured) == ("fused", True)
    clock.seconds["foreach"] = 0.9
    measure("adamw", dtype="float32")
    assert bound("adamw").implementation == "foreach"
    clock.seconds["foreach"] = 0.98  # less than 3% is no reason to leave the declared order
    measure("adamw")
    assert bound("adamw").implementation == "fused"
    assert not bound("norm_modulate").measured
    content = json.loads(choices_file(CPU).read_text())
    assert content["choices"]["bfloat16"]["training"]["rms_norm"] == {
        "implementation": "torch",
        "declared": "native",
        "seconds": {"native": 2.0, "torch": 1.0},
    }
    capsys.readouterr()
    show_operators(["--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("choices measured on 20") and str(choices_file(CPU)) in lines[1]
    assert "rms_norm                     -> torch, by measurement" in lines


def test_a_named_choice_another_dtype_and_an_own_implementation_win_over_it(clock, monkeypatch):
    measure("rms_norm")
    assert bound(choices={"rms_norm": "native"}) == bound(choices={"rms_norm": "native"}, dtypes=(torch.float32,))
    assert bound(dtypes=(torch.float32,)).implementation == "native"
    assert bound(dtypes=(torch.float32, torch.bfloat16)).implementation == "native"
    monkeypatch.setitem(sys.modules, "tests_own_norm", types.SimpleNamespace(norm=OPERATORS["rms_norm"].reference))
    own = OPERATORS["rms_norm"].with_implementation(Implementation("own", "tests_own_norm:norm"))
    assert bound(operators=OPERATORS | {"rms_norm": own}).implementation == "own"


def test_a_machine_that_is_not_here_knows_nothing_of_it(clock):
    machine = Machine("cpu", packages=frozenset({"cpu-kernels"}))
    before = choose(machine)
    measure("rms_norm")
    assert choose(machine) == before and bind(assume=machine, dtypes=BFLOAT16).choices == before


def test_choices_of_another_device_or_version_are_passed_over_with_the_reason(clock, monkeypatch, caplog, capsys):
    measure("rms_norm")
    for change, reason in (
        ({"torch": "1.0"}, f"measured with torch {torch.__version__}, here it is 1.0"),
        ({"apex": "2"}, "measured with apex absent, here it is 2"),
    ):
        with monkeypatch.context() as patch:
            now = measured_choices.versions(CPU)
            patch.setattr(measured_choices, "versions", lambda backend, now=now, change=change: now | change)
            assert bound().implementation == "native"
            assert reason in caplog.text and caplog.text.count(reason) == 1
            capsys.readouterr()
            show_operators(["--device", "cpu"])
            assert f"are not used: {reason}; measure anew: mova bench operators --choose" in capsys.readouterr().out
    path, name = choices_file(CPU), CPU.describe()
    monkeypatch.setattr(type(CPU), "describe", lambda self: "another CPU")
    assert bound().implementation == "native"
    show_operators(["--device", "cpu"])
    assert f"are not used: measured on {path.stem[len('operators-') :]}, not on this" in capsys.readouterr().out
    path.rename(choices_file(CPU))
    assert bound().implementation == "native"
    assert f"measured on {name}, this is another CPU" in caplog.text
    measure("rms_norm")
    assert bound().implementation == "torch"


def test_it_goes_on_where_it_stopped_and_measures_again_what_is_named(clock, monkeypatch):
    monkeypatch.setattr(choose_operators, "OPERATORS", {name: OPERATORS[name] for name in ("rms_norm", "adamw")})
    wrong = choose_operators._wrong

    def cut_short(operator, *arguments):
        if operator.name == "adamw":
            raise KeyboardInterrupt
        return wrong(operator, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(choose_operators, "_wrong", cut_short)
        measure()
    assert bound().implementation == "torch" and len(clock.timed) == 2
    measure()
    assert clock.timed[2:] == [("fused", "foreach")]
    measure()
    assert len(clock.timed) == 3
    clock.seconds["native"] = 0.5
    measure("rms_norm")
    assert bound().implementation == "native" and bound().measured and len(clock.timed) == 5


def test_what_is_wrong_is_not_timed(clock, monkeypatch, capsys):
    def halved(x, weight, *, eps):
        return OPERATORS["rms_norm"].reference(x, weight, eps=eps) / 2

    def wrong_when_long(x, weight, *, eps):
        y = OPERATORS["rms_norm"].reference(x, weight, eps=eps)
        return y if x.shape[1] < 64 else y * 1.05

    functions = types.SimpleNamespace(halved=halved, wrong_when_long=wrong_when_long)
    monkeypatch.setitem(sys.modules, "tests_wrong_norms", functions)
    operator = OPERATORS["rms_norm"]
    entries = tuple(Implementation(name, f"tests_wrong_norms:{name}") for name in vars(functions))
    changed = {"implementations": (*operator.implementations, *entries)}
    monkeypatch.setitem(OPERATORS, "rms_norm", replace(operator, **changed))
    measure("rms_norm")
    assert clock.timed == [("native", "torch")] * 2
    shown = capsys.readouterr().out
    assert "halved: not timed: is wrong on nano" in shown
    assert "wrong_when_long: not timed: differs by 5.0% from native" in shown


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("operator choices", "operators"),
        lambda text: text.replace('"implementation": "torch"', '"implementation": "tensor"'),
        lambda text: text.replace('"versions"', '"version"'),
        lambda text: "[]",
    ],
)
def test_a_damaged_file_is_an_error_of_one_line(clock, damage):
    measure("rms_norm")
    path = choices_file(CPU)
    path.write_text(damage(path.read_text()))
    with pytest.raises(MovaError) as caught:
        bind(CPU, dtypes=BFLOAT16)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith("mova bench operators --choose")
    with pytest.raises(MovaError):
        measure("rms_norm")


def test_a_folder_that_is_none_is_said(monkeypatch, folder):
    monkeypatch.setenv("MOVA_TILES", str(folder / "absent"))
    with pytest.raises(MovaError, match="MOVA_TILES is .* which is no folder; create it or unset the variable"):
        bind(CPU)
