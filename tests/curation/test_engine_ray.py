"""Ray as an engine: the outcomes of the pool of processes, from tasks that carry small values."""

import sys
from contextlib import closing
from pathlib import Path

import pytest
from small_works import Accidents, Squares

from mova_engine.curation.engine_processes import ProcessPool
from mova_engine.curation.engine_ray import run_on_ray
from mova_engine.curation.engine_work import ATTEMPTS, DIED, EngineLimits, Outcome, StopRunError
from mova_engine.distributed.ray_cluster import ray_cluster
from mova_engine.distributed.stop_signals import StopRequest

pytestmark = pytest.mark.long
pytest.importorskip("ray")

LIMITS = EngineLimits(workers=2)


@pytest.fixture
def run(monkeypatch):
    """Outcomes by item, of Ray that is started for them."""
    monkeypatch.setenv("PYTHONPATH", ":".join([str(Path(__file__).parents[1]), *sys.path]))

    def outcomes(work, items):
        with ray_cluster(StopRequest(), LIMITS.workers) as ray:
            return {each.item: each for each in run_on_ray(ray, work, items, LIMITS, {"num_cpus": 1})}

    return outcomes


def test_ray_has_the_outcomes_of_the_pool(run, tmp_path):
    for name in ("ray", "pool"):
        (tmp_path / name).mkdir()
    items = ["refused", "fine", "fault", "killed", "killed until 3", "well"]
    with closing(ProcessPool(LIMITS)) as processes:
        pool = {each.item: each for each in processes.run(Accidents(tmp_path / "pool"), items)}
    assert run(Accidents(tmp_path / "ray"), items) == pool
    assert pool["killed"] == Outcome("killed", reason=DIED, attempts=ATTEMPTS)


def test_ray_opens_the_work_once_by_each_worker(run, tmp_path):
    found = run(Squares(tmp_path), range(50))
    assert {number: each.result for number, each in found.items()} == {n: n * n for n in range(50)}
    assert 1 <= len(list(tmp_path.glob("opened-*"))) <= 4


def test_a_full_disk_ends_the_run_on_ray(run, tmp_path):
    with pytest.raises(StopRunError, match="no space left"):
        run(Accidents(tmp_path), ["fine", "disk full", "well"])
