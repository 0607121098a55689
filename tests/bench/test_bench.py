"""The measuring commands: what they write, and that a wrong operator gets no figure."""

import dataclasses
import json
import sys
import types

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mova_engine.bench import bandwidth, breakdown, timing
from mova_engine.bench.__main__ import main
from mova_engine.config.model import PRESETS, ClipConfig
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, Implementation, inputs
from mova_engine.ops.testing import cases
from mova_engine.ops.testing.cases import cases_of
from mova_kernels.cpu import unavailable

QUICK = ["--pairs", "2", "--seconds", "0.01", "--one-process"]
APART = QUICK[:-1]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(bandwidth._BYTES, "cpu", 1 << 20)
    clip = ClipConfig(frames=9, height=48, width=48)
    monkeypatch.setattr(timing, "LEAST", 2)
    monkeypatch.setattr(breakdown, "_RUNS", 1)
    monkeypatch.setitem(PRESETS, "nano", dataclasses.replace(PRESETS["nano"], clip=clip))


@pytest.fixture
def few_rows(monkeypatch):
    """RMSNorm with one case to be measured, so small that its check costs little."""
    case = cases._case("64x768", inputs.rms_norm, (1, 64, 768, 128), "bench")
    tested = [other for other in cases_of("rms_norm") if other.size == "test"]
    monkeypatch.setitem(cases.CASES, "rms_norm", (*tested, case))


def halved(x, weight, *, eps):
    return OPERATORS["rms_norm"].reference(x, weight, eps=eps) / 2


def _measured(tmp_path, *arguments):
    path = tmp_path / "result.json"
    assert main([*arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_operators_are_measured_and_written(few_rows, tmp_path, capsys):
    result = _measured(tmp_path, "operators", "--op", "rms_norm", "--seconds", "0.01")
    assert result["kind"] == "operators"
    found = result["circumstances"]
    assert found["torch"] == torch.__version__
    assert {"device", "device_name", "commit", "date", "load_average", "load_average_at_start"} <= found.keys()
    rows = {row["implementation"]: row for row in result["rows"]}
    assert rows.keys() == {"reference", "torch", "baseline"} | ({"native"} if unavailable() is None else set())
    assert rows["reference"]["forward_speedup"] == 1
    for row in rows.values():
        assert row["forward_backward_s"] > 0 < row["forward_s"]
        # 64 x 768 float32 read and written once forward; twice read, once written backward.
        assert row["forward_bytes_per_s"] * row["forward_s"] == pytest.approx(2 * 64 * 768 * 4)
        assert row["forward_backward_bytes_per_s"] * row["forward_backward_s"] == pytest.approx(5 * 64 * 768 * 4)
    assert "rms_norm" in capsys.readouterr().out


def test_a_wrong_implementation_gets_no_figure(few_rows, monkeypatch, tmp_path):
    entry = Implementation("halved", "tests_bench_halved:halved")
    monkeypatch.setitem(OPERATORS, "rms_norm", OPERATORS["rms_norm"].with_implementation(entry))
    monkeypatch.setitem(sys.modules, "tests_bench_halved", types.SimpleNamespace(halved=halved))
    path = tmp_path / "result.json"
    with pytest.raises(MovaError, match="rms_norm 'halved' is wrong on 64x768 .*no speed is reported"):
        main(["operators", "--op", "rms_norm", "--seconds", "0.01", "--json", str(path)])
    assert not path.exists()


@pytest.mark.parametrize("suite", ["operators", "chain", "block", "step"])
def test_a_wrong_baseline_gets_no_figure(monkeypatch, tmp_path, suite):
    monkeypatch.setitem(sys.modules, "tests_bench_wrong", types.SimpleNamespace(TABLE={"rms_norm": halved}))
    path = tmp_path / "result.json"
    options = {
        "operators": ["--op", "rms_norm", "--seconds", "0.01"],
        "chain": ["--rows", "8", "--width", "128", *QUICK],
    }.get(suite, ["--model", "nano", *QUICK])
    with pytest.raises(MovaError, match=r"'baseline' is wrong .*no speed is reported"):
        main([suite, *options, "--baseline", "tests_bench_wrong:TABLE", "--json", str(path)])
    assert not path.exists()


JOBS = {
    "chain": ["--rows", "40", "--width", "256"],
    "block": ["--model", "nano"],
    "audio-block": ["--model", "nano"],
    "bridge": ["--model", "nano"],
    "stack": ["--model", "nano", "--blocks", "2"],
    "denoise": ["--model", "nano"],
    "step": ["--model", "nano", "--batch", "2"],
}


# By default the chain of kernels and a block, in one dtype; every job by the long tests.
_QUICK = (("float32", "chain"), ("float32", "block"))
_LONG = (
    ("bfloat16", "step"),
    ("bfloat16", "chain"),
    ("float32", "bridge"),
    ("float32", "stack"),
    ("float32", "denoise"),
)
_MARKS = dict.fromkeys((*_LONG, ("bfloat16", "audio-block")), pytest.mark.long) | dict.fromkeys(_QUICK, ())
RUNS = [
    pytest.param(dtype, job, marks=_MARKS.get((dtype, job), pytest.mark.slow))
    for dtype in ("float32", "bfloat16")
    for job in JOBS
]


@pytest.mark.parametrize(("dtype", "job"), RUNS)
def test_every_job_is_measured_beside_the_baseline(tmp_path, capsys, job, dtype):
    result = _measured(tmp_path, job, *JOBS[job], *QUICK, "--dtype", dtype)
    (row,) = result["rows"]
    assert (row["job"], row["dtype"]) == (job, dtype)
    assert row["sides"].keys() == {"engine", "baseline"}
    for name, side in row["sides"].items():
        assert side["fastest_s"] <= side["median_s"] <= side["slowest_s"]
        assert side["runs"] == len(row["times_s"][name]) == row["ratios"]["baseline"]["pairs"]
        assert side["peak_live_bytes"] > 0
        assert side["operators"].keys() == OPERATORS.keys()
        assert row["checks"][name]["error"] <= row["checks"][name]["allowed"]
        if job == "chain":
            assert side["bytes_per_s"] * side["median_s"] == pytest.approx(
                43 * 40 * 256 * (4 if dtype[0] == "f" else 2)
            )
        else:
            assert side["flop_per_s"] * side["median_s"] == pytest.approx(row["model_tflop"] * 1e12)
            assert side["mfu"] is None  # nobody publishes a CPU's peak
    assert row["sides"]["baseline"]["operators"]["rms_norm_rope"] == "baseline"
    ratio = row["ratios"]["baseline"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert "as fast as baseline" in capsys.readouterr().out
    assert "scaled" not in row
    if job == "step":
        assert sum(row["breakdown"].values()) == pytest.approx(1.0)
        assert {"matrix products", "attention"} <= row["breakdown"].keys()
        assert row["breakdown_flop_per_s"].keys() == {"matrix products", "attention"}


@pytest.mark.long
def test_the_baseline_has_a_process_of_its_own_and_is_checked_there(tmp_path):
    (row,) = _measured(tmp_path, "chain", "--rows", "40", "--width", "256", *APART)["rows"]
    assert {name: side["own_process"] for name, side in row["sides"].items()} == {"engine": False, "baseline": True}
    assert row["checks"].keys() == {"engine", "baseline", "engine beside baseline"}


@pytest.mark.long
def test_a_wrong_baseline_in_a_process_of_its_own_gets_no_figure_either(monkeypatch, tmp_path):
    """The job, made anew in that process, is not the error."""
    (tmp_path / "tests_bench_apart.py").write_text(
        "from mova_engine.ops import OPERATORS\n"
        "TABLE = {'rms_norm': lambda x, weight, *, eps: OPERATORS['rms_norm'].reference(x, weight, eps=eps) / 2}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MovaError, match=r"'baseline' is wrong .*no speed is reported"):
        main(["step", "--model", "nano", *APART, "--baseline", "tests_bench_apart:TABLE"])


@pytest.mark.long
def test_a_baseline_whose_process_dies_ends_with_one_line(monkeypatch, tmp_path):
    (tmp_path / "tests_bench_dying.py").write_text(
        "import os\ndef rms_norm(x, weight, *, eps):\n    os._exit(9)\nTABLE = {'rms_norm': rms_norm}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MovaError, match=r"the process of 'baseline' ended during 'results' \(exit status 9; .*--one-"):
        main(["chain", "--rows", "8", "--width", "128", *APART, "--baseline", "tests_bench_dying:TABLE"])


def test_the_engine_is_measured_without_a_baseline(tmp_path):
    (row,) = _measured(tmp_path, "audio-block", "--model", "nano", *QUICK, "--baseline", "none")["rows"]
    assert row["sides"].keys() == {"engine"}
    assert row["ratios"] == {}


@pytest.mark.long
def test_the_baseline_may_have_another_dtype(tmp_path):
    arguments = ["chain", "--rows", "8", "--width", "128", *QUICK, "--dtype", "bfloat16"]
    (row,) = _measured(tmp_path, *arguments, "--baseline-dtype", "float32")["rows"]
    assert {name: side["dtype"] for name, side in row["sides"].items()} == {
        "engine": "bfloat16",
        "baseline": "float32",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["operators", "--op", "rms_nrom"], "unknown operator 'rms_nrom'. Did you mean 'rms_norm'"),
        (["step", "--model", "nanoo"], "unknown model 'nanoo'. Did you mean 'nano'"),
        (["step", "--dtype", "bfloat15"], "Did you mean 'bfloat16'"),
        (["step", "--model", "nano", "--baseline-dtype", "float31"], "Did you mean 'float32'"),
        (["step", "--model", "nano", "--memory.checkpointing", "some"], "--memory.checkpointing: unknown value 'some'"),
        (["block", "--model", "nano", "--baseline", "nowhere:TABLE"], "'nowhere:TABLE' is not found .*--baseline none"),
        (["block", "--model", "nano", "--baseline", "json:nothing"], "'json:nothing' is not found"),
        (["block", "--model", "nano", "--baseline", "json:dumps"], "must map operators' names to functions"),
        (["chain", "--rows", "8"], "--rows and --width come together"),
        (["chain", "--rows", "8", "--width", "100"], "width 100 is not a multiple of the head dim 128"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(MovaError, match=message):
        main(arguments)


def test_every_measured_case_says_how_large_it_is():
    """A case of size nought would be run on a device that cannot hold it."""
    measured = [case for operator in OPERATORS.values() for case in cases_of(operator) if case.size == "bench"]
    assert measured
    assert all(case.elements > 0 for case in measured)


def test_flops_of_attention_are_counted_from_its_inputs():
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    events = [e for e in trace.key_averages(group_by_input_shape=True) if "_for_cpu" in e.key]
    assert [breakdown._attention_flops(e) for e in sorted(events, key=lambda e: len(e.key))] == [6720.0, 16800.0]
