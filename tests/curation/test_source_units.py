"""Units of real films, and mixtures of them by weight."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mova_engine.curation.gathered_films import gather_films
from mova_engine.curation.source_lists import SourceOfFilms
from mova_engine.curation.source_mixture import mixed
from mova_engine.curation.source_units import FileUnits, source_units
from mova_engine.curation.units import SourceFile, Unit
from mova_engine.data.media.write import write_mp4
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Films of 1 to 4 s at two pictures a second, one of them twice, and files that are none."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(2)
    for seconds in (1, 2, 3, 4):
        video = rng.integers(0, 256, (2 * seconds, 16, 16, 3)).astype(np.uint8)
        write_mp4(folder / f"{seconds}.mp4", video, np.zeros(seconds * 8000), fps=2.0, sample_rate=8000)
    (folder / "again.mp4").write_bytes((folder / "4.mp4").read_bytes())
    (folder / "cut.mp4").write_bytes((folder / "3.mp4").read_bytes()[:-900])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no film")
    return folder


def source_file(path: Path, **facts) -> SourceFile:
    return SourceFile(path, f"films/{path.name}", "films", **facts)


def spans(units: list[FileUnits]) -> list[tuple[str, list[tuple[float, float | None]]]]:
    return [(each.file.path.name, [(unit.start, unit.end) for unit in each.units]) for each in units]


def test_a_film_is_cut_to_units_and_the_last_goes_to_its_end(films, tmp_path):
    files = [source_file(films / f"{seconds}.mp4") for seconds in (1, 4)]
    found, failed = source_units(files, 1.5, tmp_path, threads=2)
    # What is left of 4 s after two units is less than ten seconds, and goes to the second.
    assert spans(found) == [("1.mp4", [(0.0, None)]), ("4.mp4", [(0.0, 1.5), (1.5, None)])] and not failed
    assert [each.seconds for each in found] == [1.0, 4.0]
    assert len({unit.key for each in found for unit in each.units}) == 3
    assert found[0].digest == Unit(files[0], found[0].digest).digest and len(found[0].digest) == 64


def test_a_part_of_a_film_is_cut_to_units_within_it(films, tmp_path):
    part = partial_files(films, [(1.0, 3.0), (2.0, 9.0), (0.5, 0.75)])
    found, failed = source_units(part, 600, tmp_path)
    assert spans(found) == [("4.mp4", [(1.0, 3.0)]), ("4.mp4", [(2.0, None)]), ("4.mp4", [(0.5, 0.75)])]
    assert [each.seconds for each in found] == [2.0, 2.0, 0.25] and not failed
    _, failed = source_units(partial_files(films, [(4.5, 6.0)]), 600, tmp_path)
    assert failed[0].reason.endswith("4.mp4: ends after 4.000 s, before the part that is listed at 4.5 s")


def partial_files(films: Path, parts: list[tuple[float, float]]) -> list[SourceFile]:
    named = [(part, f"films/4.mp4@{part[0]:g}") for part in parts]
    return [replace(source_file(films / "4.mp4", span=part), name=name) for part, name in named]


def test_files_that_give_nothing_are_rows_with_reasons(films, tmp_path):
    names = ("4.mp4", "again.mp4", "empty.mp4", "text.mp4", "gone.mp4", "1.mp4")
    told = []
    found, failed = source_units(
        [source_file(films / name) for name in names], 600, tmp_path, progress=lambda *done: told.append(done)
    )
    assert [each.file.path.name for each in found] == ["4.mp4", "1.mp4"]
    reasons = {each.file.path.name: each.reason for each in failed}
    assert reasons["again.mp4"] == f"{films / 'again.mp4'}: the same content as films/4.mp4, which is used"
    assert reasons["gone.mp4"] == f"{films / 'gone.mp4'}: no such file"
    assert reasons.keys() == {"again.mp4", "empty.mp4", "text.mp4", "gone.mp4"}
    assert all("\n" not in reason and str(films) in reason for reason in reasons.values())
    assert told == [(n, 6) for n in range(1, 7)]


def test_lengths_and_digests_are_found_out_once(films, tmp_path, monkeypatch):
    files = [source_file(films / "4.mp4"), source_file(films / "2.mp4")]
    first = source_units(files, 600, tmp_path)
    from mova_engine.curation import source_units as module

    monkeypatch.setattr(module, "probe", None)
    assert source_units(files, 600, tmp_path) == first
    assert require_file(films / "4.mp4").st_size


def test_gathered_films_are_in_the_order_of_their_names(films, tmp_path):
    gathered = gather_films([films], (), 600, tmp_path)
    names = [unit.file.name.removeprefix(f"{films.name}/") for unit in gathered.units]
    # Of a film that is cut short the head is whole: decoding it will tell.
    assert names == ["1.mp4", "2.mp4", "3.mp4", "4.mp4", "cut.mp4"]
    assert len(gathered.failed) == 3 and any("cannot be used" in line for line in gathered.lines())
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.mp4").touch()
    with pytest.raises(MovaError, match=r"^none of 1 film can be used: .*x.mp4"):
        gather_films([tmp_path / "none"], (), 600, tmp_path)


def source(name: str, lengths: list[float], weight: float | None) -> tuple[SourceOfFilms, list[FileUnits]]:
    """A source of films of these seconds, not on any disk."""
    films = []
    for number, seconds in enumerate(lengths):
        file = SourceFile(Path(f"{number}.mp4"), f"{name}/{number}.mp4", name)
        digest = f"{name}{number}"
        films.append(FileUnits(file, digest, (Unit(file, digest, 0.0, None),), seconds))
    return SourceOfFilms(name, Path(name), tuple(each.file for each in films), weight), films


def test_weights_take_hours_in_their_ratio():
    rng = np.random.default_rng(1)
    sources, found = [], []
    for name, count, weight in (("a", 400, 3.0), ("b", 900, 1.0), ("c", 300, 0.5)):
        own, films = source(name, list(rng.uniform(5, 60, count)), weight)
        sources.append(own)
        found += films
    taken, shares = mixed(sources, found, seed=4)
    hours = np.array([share.hours for share in shares])
    # "a" has the fewest hours for its weight and is taken whole; a film of the others is the error.
    assert shares[0].films == 400 and shares[0].hours == pytest.approx(shares[0].of_hours)
    assert np.all(np.abs(hours / hours[0] - [1, 1 / 3, 0.5 / 3]) < 60 / 3600 / hours[0])
    # The same films whatever the order, and whatever they are called; others with another seed.
    names = {each.file.name for each in taken}
    again, _ = mixed(sources, found[::-1], seed=4)
    assert {each.file.name for each in again} == names
    assert {each.file.name for each in mixed(sources, found, seed=5)[0]} != names
    assert [each.file.name for each in taken] == [each.file.name for each in found if each.file.name in names]


def test_without_weights_all_is_taken_and_an_empty_source_has_none():
    one, films = source("one", [10.0, 20.0], None)
    other, more = source("other", [5.0], None)
    taken, shares = mixed([one, other], films + more)
    assert taken == films + more and [share.hours for share in shares] == [30 / 3600, 5 / 3600]
    assert shares[0].line() == "one: 2 of 2 films, 0.01 of 0.01 h"
    nothing, _ = source("nothing", [], 1.0)
    with pytest.raises(MovaError, match="nothing: gives no hours"):
        mixed([one, nothing], films)
