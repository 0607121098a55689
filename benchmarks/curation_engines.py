"""What curation's engines cost beside the work itself, and whether memory stays as it is over thousands of units.

python -m benchmarks.curation_engines [--units 2000] [--seconds 0.02] [--engines processes ray] [--json FILE]

Units compute for so long each, in CPU time, and return a number. The bare loop and the engine with one worker take
turns, a tenth of the units at a time, so that a busy machine slows both alike; an engine's overhead is the median over
the turns of its time against the bare loop next to it: wall time, and CPU time of all processes, which for Ray are its
servers too. Starting an engine is told apart.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], *os.environ.get("PYTHONPATH", "").split(os.pathsep)])

from small_works import Squares

from benchmarks.process_tree import cpu_and_memory
from mova_engine.config.curation_recipes import load_curation
from mova_engine.curation.engines import opened_engine
from mova_engine.distributed.stop_signals import StopRequest

TURNS = 10


def bare(work: Squares, items: range) -> tuple[float, float]:
    """Wall and CPU seconds of the loop alone."""
    function, begun, cpu = work.opened(), time.perf_counter(), time.process_time()
    assert [function(item, lambda now: None) for item in items] == [item * item for item in items]
    return time.perf_counter() - begun, time.process_time() - cpu


def measured(name: str, units: int, seconds: float) -> dict[str, object]:
    """One engine beside the bare loop."""
    wall: list[float] = []
    cpu: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        work = Squares(Path(place), seconds)
        config = load_curation(raw=[place], out=place, engine=name, workers=1, engines={"worker_units": 10**6})
        begun = time.perf_counter()
        with opened_engine(config, StopRequest()) as engine:
            assert [each.result for each in engine(work, [3])] == [9]
            starts = time.perf_counter() - begun
            for turn in range(TURNS):
                items = range(turn * units // TURNS, (turn + 1) * units // TURNS)
                alone = bare(work, items)
                before, begun = cpu_and_memory()[0], time.perf_counter()
                results = {each.item: each.result for each in engine(work, items)}
                taken = time.perf_counter() - begun
                after, resident = cpu_and_memory()
                assert results == {item: item * item for item in items}
                wall.append(taken / alone[0] - 1)
                cpu.append((after - before) / alone[1] - 1)
                memory.append(round(resident / 2**20, 1))
    return {
        "starts_s": starts,
        "wall_overhead": statistics.median(wall),
        "cpu_overhead": statistics.median(cpu),
        "wall_overheads": wall,
        "memory_mib": memory,
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--engines", nargs="+", default=["processes", "ray"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    told = {name: measured(name, options.units, options.seconds) for name in options.engines}
    for name, facts in told.items():
        memory = facts["memory_mib"]
        print(
            f"{name}: starts in {facts['starts_s']:.1f} s; {options.units} units of {options.seconds * 1000:g} ms: "
            f"{facts['wall_overhead']:+.1%} wall, {facts['cpu_overhead']:+.1%} CPU; memory of all its processes "
            f"{memory[0]} MiB after a {TURNS}th of the units, {memory[-1]} MiB at the end"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"units": options.units, "seconds": options.seconds, **told}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
