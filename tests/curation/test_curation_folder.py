"""The folder of a curation: what it may be, what runs may go on in it, and the order that they keep."""

from pathlib import Path

import pytest

from mova_engine.config.curation_recipes import load_curation
from mova_engine.curation.curation_folder import FORMAT, CurationFolder
from mova_engine.curation.curation_run import Curation
from mova_engine.errors import MovaError

FILTERS = {"audible": "silence <= 0.5", "moving": "motion > 1"}


@pytest.fixture
def begun(tmp_path):
    config = load_curation(raw=[str(tmp_path / "films"), str(tmp_path / "more")], out=str(tmp_path / "out"))
    folder = CurationFolder(tmp_path / "out")
    folder.check(config.raw)
    folder.begin(config, ("moving", "audible"))
    return folder, config


def test_the_same_sources_and_more_of_them_may_go_on(begun):
    folder, config = begun
    folder.check(config.raw)
    folder.check((*config.raw[::-1], Path("others")))
    with pytest.raises(MovaError, match="holds clips of .*more, which is left out now"):
        folder.check(config.raw[:1])


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MovaError, match="holds something else than a curation"):
        CurationFolder(tmp_path).check((tmp_path,))
    with pytest.raises(MovaError, match="is a file, not a folder"):
        CurationFolder(tmp_path / "notes.txt").check((tmp_path,))


def test_what_a_run_left_that_was_killed_before_it_kept_its_state_is_its_own(tmp_path):
    for name in ("lengths", "digests"):
        (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / ".curation.json.0123456789ab").write_text("{")
    CurationFolder(tmp_path / "out").check((tmp_path,))


def test_another_format_is_refused(begun):
    folder, config = begun
    state = folder.out / "curation.json"
    state.write_text(state.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(MovaError, match="keeps another format"):
        folder.check(config.raw)


def test_the_order_of_the_first_run_stays_for_the_same_filters(begun, tmp_path):
    folder, _ = begun
    assert folder.order(("audible", "moving")) == ("moving", "audible")
    assert folder.order(("audible", "moving", "new")) is None
    (tmp_path / "order.txt").write_text("audible\nmoving\n")
    given = {"raw": [str(tmp_path / "films")], "out": str(tmp_path / "out")}
    for more, expected in (
        ({}, ["moving", "audible"]),
        ({"order": str(tmp_path / "order.txt")}, ["audible", "moving"]),
    ):
        config = load_curation(recipe=str(_recipe(tmp_path)), **given, **more)
        assert [each.name for each in Curation(config).judging.judge.filters] == expected


def _recipe(folder: Path) -> Path:
    path = folder / "mine.yaml"
    path.write_text("filters:\n" + "".join(f"  {name}: {text}\n" for name, text in FILTERS.items()))
    return path


def test_a_recipe_stands_on_its_base():
    config = load_curation("curate-phase2", raw=["films"], out="out")
    assert config.name == "curate-phase2" and {"audible", "lips"} <= config.filters.keys()
    with pytest.raises(MovaError, match="unknown recipe 'curate-phase9'. Did you mean"):
        load_curation("curate-phase9", raw=["films"], out="out")
