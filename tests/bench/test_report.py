"""The page of tables comes from result files alone; two result files compare, with what differs named."""

import copy
import json

import pytest

from mova_engine.bench.__main__ import main
from mova_engine.bench.plot import ratios_svg
from mova_engine.bench.result_tables import page
from mova_engine.errors import MovaError
from mova_engine.files.results import read_result

CIRCUMSTANCES = {
    "device": "cpu",
    "device_name": "Some CPU, 2 threads",
    "threads": 2,
    "load_average_at_start": 0.1,
    "load_average": 1.9,
    "torch": "2.13.0",
    "triton": None,
    "python": "3.11.2",
    "commit": "0123456789ab",
    "date": "2026-11-22T16:26:10+00:00",
}
ENGINE = {"dtype": "float32", "median_s": 2.0, "flop_per_s": 1e11, "mfu": None, "hfu": None, "peak_live_bytes": 60e6}
ROW = {
    "job": "step",
    "model": "bench-mid",
    "video_tokens": 1280,
    "video_dim": 768,
    "batch": 1,
    "checkpointing": "none",
    "lora_rank": None,
    "dtype": "float32",
    "sides": {"engine": ENGINE, "baseline": ENGINE | {"median_s": 3.0, "peak_live_bytes": 100e6}},
    "ratios": {"baseline": {"value": 1.5, "low": 1.42, "high": 1.61, "pairs": 30}},
    "scaled": {"asked": {"model": "mova-360p"}, "measured": {"model": "bench-mid"}, "why": "the device is a CPU"},
}
CHAIN = {
    "job": "chain",
    "rows": 1280,
    "width": 768,
    "dtype": "bfloat16",
    "sides": {
        "engine": {
            "dtype": "bfloat16",
            "median_s": 0.0021,
            "bytes_per_s": 2e10,
            "of_copy_bandwidth": 0.8,
            "peak_live_bytes": 4e6,
        },
    },
    "ratios": {},
}
OPERATOR = {
    "operator": "rms_norm",
    "case": "360p",
    "implementation": "triton",
    "forward_s": 0.0004,
    "forward_speedup": 7.0,
    "forward_of_copy_bandwidth": 0.93,
    "forward_backward_s": 0.001,
    "forward_backward_speedup": 8.0,
    "forward_backward_of_copy_bandwidth": 0.88,
}


def _result(kind, *rows, **circumstances):
    return {"kind": kind, "circumstances": CIRCUMSTANCES | circumstances, "dtype": "bfloat16", "rows": list(rows)}


def test_the_committed_page_is_what_the_committed_files_give(repo_root, tmp_path):
    """`python -m mova_engine.bench report --out docs/benchmarks.md` after a file was added or changed."""
    files = sorted((repo_root / "benchmarks" / "results").glob("*.json"))
    out = tmp_path / "benchmarks.md"
    assert main(["report", *map(str, files), "--out", str(out)]) == 0
    committed = repo_root / "docs"
    assert out.read_text() == (committed / "benchmarks.md").read_text()
    plot, theirs = out.with_suffix(".svg"), committed / "benchmarks.svg"
    assert plot.exists() == theirs.exists()
    assert not plot.exists() or plot.read_text() == theirs.read_text()
    assert all(f"`{path.name}`" in out.read_text() for path in files)


def test_a_page_from_made_up_files(tmp_path):
    for name, result in {
        "step": _result("step", ROW),
        "chain": _result("chain", CHAIN, load_average=7.5),
        "operators": _result("operators", OPERATOR),
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    out = tmp_path / "page.md"
    assert main(["report", *map(str, tmp_path.glob("*.json")), "--out", str(out)]) == 0
    lines = out.read_text().splitlines()
    (step,) = (line for line in lines if line.startswith("| step"))
    for text in ("2.000 s", "3.000 s", "1.50 [1.42, 1.61]", "| 30 |", "60.0 of 100.0 MB (60%)", "100 GFLOP/s"):
        assert text in step
    assert "scaled: the device is a CPU" in step
    (chain,) = (line for line in lines if line.startswith("| chain"))
    assert "2.10 ms | - | - | - | 4.0 MB | 20.0 GB/s, 80% of copy" in chain
    (operator,) = (line for line in lines if line.startswith("| rms_norm"))
    assert "0.40 ms | 93% | 1.00 ms | 88% | 8.00" in operator
    busy = [line for line in lines if "(busy)" in line]
    assert len(busy) == 1 and "`chain.json`" in busy[0]
    assert "![How many times as fast as the baseline](page.svg)" in lines
    assert "1.50" in (tmp_path / "page.svg").read_text()


def test_the_same_files_give_the_same_page():
    results = {"b.json": _result("step", ROW), "a.json": _result("chain", CHAIN)}
    assert page(results) == page(dict(reversed(results.items())))


def test_no_ratio_no_plot():
    assert ratios_svg([]) == ""


def test_comparing_two_files(tmp_path, capsys):
    after = copy.deepcopy(ROW)
    after["sides"]["engine"]["median_s"] = 1.6
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, row, versions in zip(paths, (ROW, after), ({}, {"torch": "2.14.0", "load_average": 9.0}), strict=True):
        path.write_text(json.dumps(_result("step", row, **versions)))
    assert main(["compare", *map(str, paths)]) == 0
    printed = capsys.readouterr().out
    assert "! torch: 2.13.0 before, 2.14.0 after" in printed
    assert "! the machine was busy after (load average 9.0" in printed
    assert "python" not in printed
    (line,) = (line for line in printed.splitlines() if "engine median_s" in line)
    assert line.endswith("1.250x")
    assert main(["compare", str(paths[0]), str(paths[0])]) == 0
    assert "!" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot read"), ("[]", "no result file"), ('{"kind": "step"}', "no result file")],
)
def test_what_is_no_result_file(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(MovaError, match=message):
        read_result(path)


def test_files_that_cannot_be_compared(tmp_path):
    paths = [tmp_path / f"{name}.json" for name in ("step", "chain", "other")]
    results = (_result("step", ROW), _result("chain", CHAIN), _result("step", ROW | {"model": "nano"}))
    for path, result in zip(paths, results, strict=True):
        path.write_text(json.dumps(result))
    with pytest.raises(MovaError, match="cannot compare a file of kind 'step' with one of kind 'chain'"):
        main(["compare", *map(str, paths[:2])])
    with pytest.raises(MovaError, match="no row in common"):
        main(["compare", str(paths[0]), str(paths[2])])


def test_no_file_to_report_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MovaError, match="no result file"):
        main(["report"])
