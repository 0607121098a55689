"""`--suite`: parity first, every measurement on its own, one file that tells what was measured and what was not."""

import json
import time
from dataclasses import dataclass

import pytest
import torch

from mova_engine.backend import get_backend
from mova_engine.bench import campaigns
from mova_engine.bench.__main__ import main
from mova_engine.bench.campaigns import CAMPAIGNS, Measurement
from mova_engine.bench.settings import MEASUREMENTS as BENCH
from mova_engine.bench.suites import SUITES
from mova_engine.config.command import Command
from mova_engine.errors import MovaError
from mova_engine.parity.judge import ParityRow


@dataclass(frozen=True, kw_only=True)
class ProductConfig:
    """The time of a matrix product."""

    width: int = 8
    """Of the matrices."""


def product(settings, backend, dtype):
    x = torch.ones(settings.width, settings.width, device=backend.device(), dtype=dtype)
    start = time.perf_counter()
    total = float((x @ x).sum())
    return [{"width": settings.width, "total": total, "seconds": time.perf_counter() - start}]


def impossible(settings, backend, dtype):
    raise RuntimeError("out of memory at 10.1.2.3\nand a stack")


MEASUREMENTS = (
    Measurement("impossible"),
    Measurement("product", ("--width", "64"), ("--width", "16"), dtype="float32"),
    Measurement("product", ("--width", "64"), rehearsed=False),
)


@pytest.fixture
def quick(monkeypatch):
    """A campaign of small commands, and parity by the towers alone."""
    monkeypatch.setattr(campaigns, "CAMPAIGNS", {"tiny": MEASUREMENTS})
    made = {name: Command(f"mova bench {name}", ProductConfig, "A product.") for name in ("product", "impossible")}
    monkeypatch.setattr(campaigns, "MEASUREMENTS", made)
    monkeypatch.setattr(campaigns, "SUITES", {"product": product, "impossible": impossible})
    monkeypatch.setattr(campaigns, "operator_rows", lambda backend, dtype: iter(()))
    monkeypatch.setattr(campaigns, "_GOLDEN", campaigns.Path("nowhere"))


def run(path, *words):
    status = main(["--suite", "tiny", "--device", "cpu", "--json", str(path), *words])
    return status, json.loads(path.read_text())


def test_a_failure_is_written_down_and_the_rest_goes_on(quick, tmp_path, capsys):
    status, content = run(tmp_path / "r.json")
    assert status == 0 and content["kind"] == "suite tiny" and content["emulated"] is False and "mark" not in content
    failed, first, second = content["measurements"]
    assert failed["failed"] == "RuntimeError: out of memory at <address>"
    assert (first["rows"][0]["total"], first["dtype"], first["small"]) == (16.0**3, "float32", True)
    assert second["left_out"] == "no small shapes: --width 64" and "rows" not in second
    assert content["circumstances"]["device"] == "cpu"
    assert "failed, and said why: impossible (bfloat16)" in capsys.readouterr().out


def test_an_emulated_device_marks_every_row(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(type(get_backend("cpu")), "emulated", lambda self: True)
    _, content = run(tmp_path / "r.json")
    assert content["mark"] == campaigns.EMULATED == "emulated: not a measurement"
    assert [row["mark"] for row in content["measurements"][1]["rows"]] == [campaigns.EMULATED]
    assert capsys.readouterr().out.startswith(campaigns.EMULATED)


def test_nothing_is_measured_where_parity_is_missed(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(campaigns, "tower_rows", lambda *_: [ParityRow("nano", "out.video", 0.5, 0.1)])
    status, content = run(tmp_path / "r.json")
    assert status == 1 and content["measurements"] == []
    assert content["parity"]["towers, float32"]["missed"][0]["tensor"] == "out.video"


@pytest.mark.long
def test_recorded_cases_take_part_where_they_are(quick, tmp_path, golden_dir):
    _, content = run(tmp_path / "r.json", "--golden", str(golden_dir))
    assert content["parity"]["recorded cases, float32"] == {"compared": 379, "missed": []}


def test_unknown_names_are_refused_before_anything_runs(quick, monkeypatch):
    with pytest.raises(MovaError, match="unknown suite 'tinny'. Did you mean 'tiny'"):
        main(["--suite", "tinny"])
    monkeypatch.setattr(campaigns, "SUITES", {"impossible": impossible})
    with pytest.raises(MovaError, match="needs 'product', which this version of the engine lacks"):
        main(["--suite", "tiny"])


def test_the_command_knows_suites():
    with pytest.raises(MovaError, match="Known: 910a2"):
        main(["--suite", "910b"])


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_every_measurement_is_a_command_whose_options_parse(name):
    for measurement in CAMPAIGNS[name]:
        for options in (measurement.full, measurement.small):
            assert measurement.command in SUITES
            BENCH[measurement.command].parse(list(options))
