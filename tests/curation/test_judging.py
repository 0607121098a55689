"""What clips are judged by: recipes as they come, corrections of sound, and the table's own record of both."""

from pathlib import Path

import pytest
import yaml

from mova_engine.config.curate import CurateConfig
from mova_engine.config.sound_correction import SoundCorrection
from mova_engine.curation.judging import Judging, judging_of, read_order
from mova_engine.curation.sound_columns import SoundColumns
from mova_engine.errors import MovaError

pa = pytest.importorskip("pyarrow")
OFFSETS = [2.0, -5.0, 0.4, 20.0, None, 3.0]
SURE = [6.0, 6.0, 6.0, 6.0, 6.0, None]
LOUDNESS = [-24.0, -23.0, -50.0, None, -10.0, -3.0]


def corrected(**settings):
    columns = {"lse_offset": OFFSETS, "lse_c": SURE, "lufs": LOUDNESS}
    return SoundColumns.of(SoundCorrection(**settings)).of_table(pa.table(columns))


def test_sound_is_moved_by_an_offset_that_the_measure_is_sure_of():
    found = corrected(shift="lse_offset / 25", shift_where="lse_c >= 4.5", least_shift=0.04, most_shift=0.24)
    assert found["sound_shift"].to_pylist() == [0.08, -0.2, 0.0, 0.0, 0.0, 0.0]
    assert found["gain_db"].to_pylist() == [0.0] * 6


def test_loudness_is_brought_to_its_target_within_bounds():
    assert corrected(lufs=-23.0, most_gain=12.0)["gain_db"].to_pylist() == [1.0, 0.0, 12.0, 0.0, -12.0, -12.0]
    assert corrected(lufs=-23.0)["sound_shift"].to_pylist() == [0.0] * 6


def test_a_table_tells_what_its_clips_were_judged_by():
    config = CurateConfig(
        raw=(Path("films"),),
        out=Path("out"),
        filters={"lips": "lse_c >= 4.5", "audible": "silence <= 0.5"},
        marks={"late": "lse_offset < 0"},
        sound=SoundCorrection(shift="lse_offset / 25", lufs=-20.0),
    )
    judging = Judging.of(config, order=["audible", "lips"])
    assert judging.judge.also == ("lip-sync",), "what corrects the sound is measured too"
    table = pa.table({"lse_c": SURE, "lse_offset": OFFSETS, "silence": [0.1] * 6, "lufs": LOUDNESS})
    table = table.replace_schema_metadata(judging.metadata())
    again = judging_of(table.schema, Path("clips.parquet"))
    assert again == judging
    columns = again.columns(table)
    assert columns["dropped_by"].to_pylist() == [None] * 5 + ["lips"]
    assert columns["late"].to_pylist() == [False, True, False, False, None, False]
    with pytest.raises(MovaError, match="no table of clips"):
        judging_of(table.schema.remove_metadata(), Path("clips.parquet"))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"shift": "lse_offse / 25"}, "sound.shift names no column: 'lse_offse'. Did you mean 'lse_offset'"),
        ({"shift": "lse_c > 1"}, "sound.shift wants a number where it has true or false"),
        ({"shift": "lse_offset", "shift_where": "lse_c"}, "wants true or false"),
        ({"lufs": 3.0}, "sound.lufs must lie between -70 and 0"),
        ({"most_gain": float("nan")}, "sound.most_gain must be at least 0"),
    ],
)
def test_settings_that_cannot_be_meant(settings, said):
    with pytest.raises(MovaError, match=said):
        SoundColumns.of(SoundCorrection(**settings))


def test_an_order_is_read_line_by_line(tmp_path):
    path = tmp_path / "order.txt"
    path.write_text("# cheapest first\naudible  # 0.1 s\n\nlips\n")
    assert read_order(path) == ("audible", "lips")
    path.write_text("# nothing\n")
    with pytest.raises(MovaError, match="names no filter"):
        read_order(path)


RECIPES = Path(__file__).parents[2] / "mova_engine" / "config" / "curation_recipes"
NEEDS_WEIGHTS = {"desync", "imagebind", "dover", "audiobox", "sound-events", "lip-sync"}


def _filters(name):
    """The recipe's filters and those of its bases, read and ordered as the command has them."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    below = _filters(recipe["base"]) if "base" in recipe else {}
    return below | recipe["filters"]


@pytest.mark.parametrize("name", ["curate-laptop", "curate-mova", "curate-phase2", "curate-phase3"])
def test_recipes_can_be_read_and_say_the_published_thresholds(name):
    judging = Judging.of(CurateConfig(raw=(Path("films"),), out=Path("out"), filters=_filters(name)))
    scores = set(judging.judge.scores)
    good = {
        "silence": 0.1,
        "clipping": 0.0,
        "band_edge": 16e3,
        "still_share": 0.1,
        "duplicate_of": None,
        "dnsmos_ovrl": 3.5,
    }
    good |= {"desync": 0.4, "imagebind": 0.1, "dover_technical_raw": 0.2, "audiobox_pq": 7.0, "text_overlay": 0.0}
    good |= {"kind": "speech-shot", "face_tracks": 1.0, "lse_d": 9.5, "lse_c": 4.5, "width": 1280.0, "height": 720.0}
    verdict = judging.judge.verdict
    assert verdict(good) == ("keep", None)
    if name == "curate-laptop":
        assert not scores & NEEDS_WEIGHTS
        return
    assert verdict({**good, "desync": 0.51}) == ("drop", "agreeing")
    assert verdict({**good, "desync": 0.51, "imagebind": 0.2}) == ("keep", None)
    assert verdict({**good, "desync": 0.51, "imagebind": None}) == ("unknown", "agreeing")
    if name != "curate-mova":
        assert verdict({**good, "lse_d": 9.6})[1] == verdict({**good, "lse_c": 4.4})[1] == "lips"
        assert verdict({**good, "lse_d": None, "lse_c": None, "face_tracks": 0.0}) == ("keep", None)
