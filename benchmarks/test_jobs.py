"""`pytest benchmarks/`: the jobs of `python -m mova_engine.bench` on `bench-mid`, each side checked, then timed."""

import pytest

from mova_engine.bench.candidate import InProcessRunner, drawn_once
from mova_engine.bench.candidates import check_sides
from mova_engine.bench.jobs import block_job, bridge_job, chain_job, step_job
from mova_engine.bench.smaller_sizes import small_config
from mova_engine.config.model import get_preset

CONFIG = get_preset("bench-mid")
SMALL = small_config(CONFIG)
# (the job at the measured size, the same at the size of its check), made for a dtype.
JOBS = {
    "chain-1280x768": lambda dtype: (chain_job(1280, 768, dtype=dtype), chain_job(33, 768, dtype=dtype)),
    "block": lambda dtype: (block_job(CONFIG, "video"), block_job(SMALL, "video")),
    "audio-block": lambda dtype: (block_job(CONFIG, "audio"), block_job(SMALL, "audio")),
    "bridge": lambda dtype: (bridge_job(CONFIG), bridge_job(SMALL)),
    "step": lambda dtype: (step_job(CONFIG), step_job(SMALL)),
}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("side", ["engine", "baseline"])
def test_job(benchmark, backend, dtype, sides, name, side):
    job, small = JOBS[name](dtype)
    worker = InProcessRunner(sides[side], backend, drawn_once(backend, dtype), dtype)
    check_sides(small, {side: worker}, dtype, backend)
    worker.begin(job)
    benchmark.pedantic(worker.run, rounds=5, warmup_rounds=1)
