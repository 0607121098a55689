"""`mova eval compare`: only common clips count, and a difference is told only where it is one."""

import numpy as np
import pytest

from mova_engine.commands.eval_compare import main
from mova_engine.errors import MovaError
from mova_engine.evaluation.comparison_of_sets import compare
from mova_engine.evaluation.score_parquet import parquet_bytes
from mova_engine.scores.score_declaration import Score, ScoreColumn

QUALITY = Score("quality", "x:y", (ScoreColumn("up", "", "", better="up"), ScoreColumn("down", "", "", better="down")))


def _written(folder, values, score=QUALITY, first=0, weights=None):
    folder.mkdir()
    rows = [
        {"clip": f"{first + i}.mp4", "sha256": "0", "up": value, "down": value, "why_quality": None}
        for i, value in enumerate(values)
    ]
    facts = {"version": score.version, "convention": score.convention("corrected"), "weights": weights or {}}
    (folder / "scores.parquet").write_bytes(parquet_bytes(rows, [score], {score.name: facts}))
    return folder


def test_the_difference_is_that_of_pairs(tmp_path):
    """Clips differ by far more than the two sets do: only pairs show it."""
    levels = 10 * np.random.default_rng(0).standard_normal(40)
    first = _written(tmp_path / "a", levels.tolist())
    second = _written(tmp_path / "b", [*(levels + 0.1).tolist(), 99.0, None])
    (up, down), common = compare(first, second)
    assert (common, up.clips) == (40, 40)
    assert up.difference == pytest.approx(0.1) and up.interval[0] > 0
    assert (up.verdict, down.verdict) == ("second", "first")


def test_no_difference_has_no_verdict(tmp_path, capsys):
    drawn = np.random.default_rng(1)
    folders = [_written(tmp_path / name, drawn.standard_normal(30).tolist()) for name in "ab"]
    assert [pair.verdict for pair in compare(*folders)[0]] == ["", ""]
    assert main([str(folder) for folder in folders]) == 0
    assert "30 clips in both" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_by_name(tmp_path):
    first = _written(tmp_path / "a", [1.0, 2.0])
    other = Score("quality", "x:y", QUALITY.columns, version=2)
    with pytest.raises(MovaError, match="version 1 in .*, 2 in"):
        compare(first, _written(tmp_path / "b", [1.0, 2.0], other))
    other = Score("quality", "x:y", QUALITY.columns, conventions=("mova",))
    with pytest.raises(MovaError, match="convention corrected in .*, mova in"):
        compare(first, _written(tmp_path / "e", [1.0, 2.0], other))
    with pytest.raises(MovaError, match=r"weights none in .*, net 0123456789ab\.\.\. in"):
        compare(first, _written(tmp_path / "f", [1.0, 2.0], weights={"net": "0123456789ab" + 52 * "c"}))
    with pytest.raises(MovaError, match="no clip of the same name"):
        compare(first, _written(tmp_path / "c", [1.0], first=10))
    with pytest.raises(MovaError, match="no such file"):
        compare(first, tmp_path / "nowhere")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "scores.parquet").write_bytes(b"no table")
    with pytest.raises(MovaError, match="cannot read"):
        compare(first, tmp_path / "d")


def test_clips_of_a_bench_are_compared_by_id_with_the_mean_of_their_files(tmp_path):
    rows = {
        "a": [("set1/1_seed0.mp4", "1", 1.0), ("set1/1_seed1.mp4", "1", 3.0), ("set2/1.mp4", "2", None)],
        "b": [("other 1.mp4", "1", 5.0), ("more.mp4", "3", 7.0)],
    }
    facts = {QUALITY.name: {"version": 1, "convention": "corrected", "weights": {}}}
    for name, values in rows.items():
        (tmp_path / name).mkdir()
        table = [
            {"clip": clip, "sha256": "0", "id": i, "category": "set1", "up": x, "down": x, "why_quality": None}
            for clip, i, x in values
        ]
        (tmp_path / name / "scores.parquet").write_bytes(parquet_bytes(table, [QUALITY], facts))
    (up, _), common = compare(tmp_path / "a", tmp_path / "b")
    assert (common, up.clips, up.first, up.second) == (1, 1, 2.0, 5.0)
