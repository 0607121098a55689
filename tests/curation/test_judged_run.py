"""What a real run leaves can be reported, explained, judged anew and predicted from."""

import json
import shutil
from pathlib import Path

import pytest

from mova_engine.commands import curate_explain, curate_refilter, curate_report, plan_curate
from mova_engine.config.curation_recipes import load_curation

pytest.importorskip("pyarrow")
pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytest.importorskip("silero_vad")

FILM = Path(__file__).parents[1] / "data" / "media" / "talking_real_speech.mp4"


@pytest.mark.long
def test_a_real_run_is_told(tmp_path, capsys):
    from mova_engine.curation.curation_run import Curation

    films, out = tmp_path / "films", tmp_path / "curated"
    films.mkdir()
    shutil.copy(FILM, films / "talking.mp4")
    filters = {"audible": "silence <= 0.8", "unique": "duplicate_of is None", "lively": "motion >= 100"}
    config = load_curation("curate-laptop", raw=[films], out=out, clip={"frames": 49}, workers=1, filters=filters)
    result = Curation(config).run()
    assert result.funnel.verdicts["drop"] == result.funnel.clips >= 3 and not (out / "metadata.jsonl").read_text()
    capsys.readouterr()

    assert curate_report.main([str(out), "--sheets", "1"]) == 0
    page = (out / "report.html").read_text()
    assert "data:image/webp;base64," in page and "talking.mp4" in page and "cut, with the numbers" in page
    assert (out / "order.txt").read_text().count("\n") == 1 + len(config.filters)

    assert curate_refilter.main([str(out), "--filters.lively", "motion >= 0", "--without", "unique", "--write"]) == 0
    said = capsys.readouterr().out
    assert "drop -> keep" in said and "for want of the score" not in said
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) >= 3 and all(Path(line["video_path"]).is_file() for line in lines)

    assert curate_explain.main([str(out), lines[0]["id"][:10]]) == 0
    said = capsys.readouterr().out
    assert "kept" in said and "lively wants >= 0" in said and "seconds of its part of the film" in said

    assert plan_curate.main(["10", "--measured", str(out), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["kept"] > 0 and plan["core_days"]["cut"] > 0
