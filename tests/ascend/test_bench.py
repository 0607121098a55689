"""`python -m mova_engine.bench --suite 910a2` rehearses itself on the emulator, and says that it measured nothing."""

import json

import pytest

from mova_engine.bench import campaigns
from mova_engine.bench.__main__ import main

pytestmark = pytest.mark.npu
# What the suite measures on its way from the norms to a training step.
PARTS = ["chain", "block", "audio-block", "bridge", "denoise", "stack", "step"]


@pytest.mark.parametrize("parts", [PARTS[:2], pytest.param(PARTS, marks=pytest.mark.slow)], ids=["two", "all"])
def test_the_suite_to_send_back(npu, tmp_path, monkeypatch, capsys, parts):
    if not npu.emulated():
        pytest.skip("a real NPU would be measured, for an hour")
    chosen = tuple(m for m in campaigns.CAMPAIGNS["910a2"] if m.command in (*parts, "operators"))
    monkeypatch.setitem(campaigns.CAMPAIGNS, "910a2", chosen)
    # Parity has tests of its own on this device.
    monkeypatch.setattr(campaigns, "operator_rows", lambda *_: iter(()))
    monkeypatch.setattr(campaigns, "tower_rows", lambda *_: [])
    monkeypatch.setattr(campaigns, "_GOLDEN", tmp_path / "none")
    path = tmp_path / "910a2.json"
    assert main(["--suite", "910a2", "--device", "npu", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    mark = "emulated: not a measurement"
    assert content["mark"] == mark and content["circumstances"]["device_name"] == "emulated Ascend 910B2"
    assert capsys.readouterr().out.startswith(mark)
    measured = [m for m in content["measurements"] if "left_out" not in m]
    assert [(m["command"], m.get("failed")) for m in measured] == [(name, None) for name in parts]
    for row in (row for m in measured for row in m["rows"]):
        assert row["mark"] == mark and row["sides"]["engine"].get("mfu") is None
        assert row["sides"]["engine"]["operators"]["attention"] == "npu"
    left_out = {m["command"] for m in content["measurements"] if "left_out" in m}
    assert left_out == {"operators"}
