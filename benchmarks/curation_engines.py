"""What curation's engines cost beside the work itself, and whether memory stays as it is over thousands of units.

python benchmarks/curation_engines.py [--units 2000] [--seconds 0.02] [--engines processes ray] [--json FILE]

Units compute for so long each, in CPU time, and return a number. The bare loop, an engine with one worker and the other
one take turns, 200 units at a time, so that a busy machine slows all alike; an engine's overhead is the median over the
turns of its time against the bare loop's next to it, wall time and CPU time of all its processes. Ray's own processes
(raylet, GCS) count. Starting an engine is told apart.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], *os.environ.get("PYTHONPATH", "").split(os.pathsep)])

from small_works import Squares

from mova_engine.config.curation_recipes import load_curation
from mova_engine.curation.engines import opened_engine
from mova_engine.distributed.stop_signals import StopRequest

TURN = 200
TICKS = os.sysconf("SC_CLK_TCK")


def processes_below(pid: int) -> list[int]:
    """This process and all that it has started, and they."""
    found, pending = [], [pid]
    while pending:
        found.append(pending.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                pending += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def cpu_and_memory(pids: list[int]) -> tuple[float, int]:
    """CPU seconds, those of ended children included, and resident bytes of processes together."""
    seconds, resident = 0.0, 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
        seconds += sum(map(int, fields[11:15])) / TICKS
    return seconds, resident


def bare(work: Squares, items: range) -> tuple[float, float]:
    """Wall and CPU seconds of the loop alone."""
    function, begun, cpu = work.opened(), time.perf_counter(), time.process_time()
    assert [function(item, lambda now: None) for item in items] == [item * item for item in items]
    return time.perf_counter() - begun, time.process_time() - cpu


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--engines", nargs="+", default=["processes", "ray"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    told = {}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        work = Squares(Path(place), options.seconds)
        engines, memory = {}, {}
        for name in options.engines:
            config = load_curation(raw=[place], out=place, engine=name, workers=1, engines={"worker_units": 10**6})
            before = set(processes_below(os.getpid()))
            begun = time.perf_counter()
            engines[name] = stack.enter_context(opened_engine(config, StopRequest()))
            assert [each.result for each in engines[name](work, [3])] == [9]
            told[name] = {"start_s": time.perf_counter() - begun}
            # Whoever was started with the engine; its worker stays the same.
            own = [pid for pid in processes_below(os.getpid()) if pid not in before]
            memory[name] = (own, [])
            told[name] |= {"wall": [], "cpu": []}
        for first in range(0, options.units, TURN):
            items = range(first, first + TURN)
            wall, cpu = bare(work, items)
            for name, engine in engines.items():
                own, sizes = memory[name]
                before, begun, parent = cpu_and_memory(own)[0], time.perf_counter(), time.process_time()
                results = {each.item: each.result for each in engine(work, items)}
                taken = time.perf_counter() - begun
                after, size = cpu_and_memory(own)
                assert results == {item: item * item for item in items}
                told[name]["wall"].append(taken / wall - 1)
                told[name]["cpu"].append((after - before + time.process_time() - parent) / cpu - 1)
                sizes.append((size, cpu_and_memory([os.getpid()])[1]))
    for name, facts in told.items():
        sizes = memory[name][1]
        facts |= {
            "wall_overhead": statistics.median(facts.pop("wall")),
            "cpu_overhead": statistics.median(facts.pop("cpu")),
            "engine_and_workers_mib": [round(size / 2**20, 1) for size, _ in sizes],
            "this_process_mib": [round(size / 2**20, 1) for _, size in sizes],
        }
        sizes = facts["engine_and_workers_mib"]
        print(
            f"{name}: starts in {facts['start_s']:.1f} s; {options.units} units of {options.seconds * 1000:g} ms: "
            f"{facts['wall_overhead']:+.1%} wall, {facts['cpu_overhead']:+.1%} CPU; memory of its processes "
            f"{sizes[0]} MiB after {TURN} units, {sizes[-1]} MiB at the end"
        )
    if options.json:
        options.json.write_text(json.dumps({"units": options.units, "seconds": options.seconds, **told}, indent=1))


if __name__ == "__main__":
    main()
