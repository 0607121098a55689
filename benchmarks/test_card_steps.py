"""`pytest benchmarks/`: the steps of a card's suite, checked, then timed, with MFU, HFU, peak memory, prediction.

On a CPU they are rehearsed at small sizes, and say so. `--bench-device` names the device, `--card` the suite.
"""

from dataclasses import replace

import pytest

from mova_engine.bench.card.card_context import make_context
from mova_engine.bench.card.card_suites import get_suite, part_named
from mova_engine.ops import resolve

STEPS = [(part, unit) for part in ("stack", "denoise", "lora", "streaming") for unit in part_named(part).seconds]
SHOWN = ("mfu", "hfu", "peak_bytes", "predicted", "settings", "scaled", "copies", "note")


@pytest.fixture(scope="session")
def context(request, backend):
    return make_context(get_suite(request.config.getoption("--card")), backend.name, rehearse=False)


@pytest.mark.parametrize(("part", "unit"), STEPS, ids=[f"{part}-{unit}" for part, unit in STEPS])
def test_step(benchmark, context, part, unit):
    rounds = 1 if context.rehearsed else 3

    def measure(run):
        """What the benchmark times, run by run."""
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)
        return benchmark.stats.stats.data

    with context.backend.full_precision():
        (row,) = resolve(part_named(part).target)(replace(context, measure=measure), unit)
    benchmark.extra_info |= {name: row[name] for name in SHOWN if row.get(name) is not None}
    benchmark.extra_info["mark"] = context.mark or "measured"
    context.clear()
