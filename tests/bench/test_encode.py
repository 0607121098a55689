"""Who encodes: the three ways hand on the same clips, and what they cost is counted."""

import json

import pytest

from mova_engine.bench.__main__ import main
from mova_engine.bench.result_tables import page
from mova_engine.errors import MovaError


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(MovaError, match="leave --device and --dtype out"):
        main(["encode", "--dtype", "bfloat16"])
    with pytest.raises(MovaError, match="numbers of at least 2"):
        main(["encode", "--processes", "1"])


@pytest.mark.slow
def test_calls_are_counted_and_the_page_shows_them(tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra [codecs])")
    path = tmp_path / "encode.json"
    options = ["--model", "nano", "--codec-width", "2", "--processes", "2"]
    assert main(["encode", *options, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["circumstances"]["processes"] == 2
    (row,) = result["rows"]
    counts = {name: found["encodes_per_clip"] for name, found in row["schemes"].items()}
    assert counts == {"each": 2, "one": 1, "rounds": 1, "nobody": 0}
    assert row["ratios"].keys() == {"each", "one", "nobody"}
    assert all(found["median_s"] > 0 and found["runs"] == 5 for found in row["schemes"].values())
    text = page({"encode.json": result})
    assert "| each another clip, in rounds; nano, 81 video tokens, codec width 2 | 2 |" in text
