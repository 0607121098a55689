"""`pytest benchmarks/`: the jobs of `python -m mova_engine.bench`, each side checked, then timed, with MFU and HFU."""

import pytest

from mova_engine.bench.candidate import InProcessRunner, drawn_once
from mova_engine.bench.candidates import check_sides
from mova_engine.bench.jobs import block_job, bridge_job, chain_job, step_job
from mova_engine.bench.smaller_sizes import small_config
from mova_engine.config.model import get_preset

# (the job at the measured size, the same at the size of its check), made for a configuration and a dtype.
JOBS = {
    "chain": lambda config, small, dtype: (chain_job(1280, 768, dtype=dtype), chain_job(33, 768, dtype=dtype)),
    "block": lambda config, small, dtype: (block_job(config, "video"), block_job(small, "video")),
    "audio-block": lambda config, small, dtype: (block_job(config, "audio"), block_job(small, "audio")),
    "bridge": lambda config, small, dtype: (bridge_job(config), bridge_job(small)),
    "step": lambda config, small, dtype: (step_job(config), step_job(small)),
}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("side", ["engine", "baseline"])
def test_job(benchmark, backend, dtype, sides, name, side):
    # A whole step of MOVA does not fit a card as it is: test_card_steps.py has those that do.
    config = get_preset("bench-mid" if backend.name == "cpu" or name == "step" else "mova-360p")
    job, small = JOBS[name](config, small_config(config), dtype)
    worker = InProcessRunner(sides[side], backend, drawn_once(backend, dtype), dtype)
    check_sides(small, {side: worker}, dtype, backend)
    worker.begin(job)
    benchmark.pedantic(worker.run, rounds=5, warmup_rounds=1)
    peak, seconds = backend.peak_flops(dtype), benchmark.stats.stats.median
    shares = {"mfu": job.model_flops, "hfu": job.hardware_flops}
    benchmark.extra_info |= {key: flops / seconds / peak if peak else None for key, flops in shares.items()}
    benchmark.extra_info |= worker.memory()
