"""What a run says while it works, by a clock that the tests set."""

from mova_engine.curation import curation_progress
from mova_engine.curation.curation_progress import CurationProgress, FilmsProgress
from mova_engine.curation.unit_run import UnitReport


def test_films_that_are_looked_at_are_told_now_and_then(monkeypatch):
    now, said = [0.0], list[str]()
    monkeypatch.setattr(curation_progress.time, "monotonic", lambda: now[0])
    told = FilmsProgress(said.append)
    for done in range(1, 31):
        now[0] = float(done)
        told(done, 30)
    assert said == ["[11/30] films looked at", "[22/30] films looked at"]


def test_the_time_left_is_that_of_units_that_are_still_to_be_cut(monkeypatch):
    now, said = [0.0], list[str]()
    monkeypatch.setattr(curation_progress.time, "monotonic", lambda: now[0])
    progress = CurationProgress(4, 2, said.append)
    progress.add(UnitReport(3, 3))
    now[0] = 20.0
    progress.add(UnitReport(5, 2, 7200.0, seconds={"cut": 10.0, "decode": 1.0}, measured={"cut": 5, "decode": 2}))
    assert said == ["[2/4] 2 h of film cut, 8 clips, 5 not dropped; cut 720x real time of a worker; 0:00:20 left"]
