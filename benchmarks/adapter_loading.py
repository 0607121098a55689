"""How fast adapter files of half a GB are read, in every dialect, beside safetensors' own reading of the same bytes.

    python -m benchmarks.adapter_loading --out benchmarks/results/adapter-loading.json

The adapter has random values in bfloat16 for every linear layer of MOVA-360p that a dialect can hold, of the rank with
which its files come nearest to --megabytes. Reading includes finding out the dialect, the place of every key, and the
check that all values are finite. Files are in the page cache; each is read --rounds times, the least time counts: of
the clock, and of the processor, which other programs on the machine lengthen less.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mova_engine.adapters.dialects import DIALECTS, get_dialect
from mova_engine.adapters.form import Adapter, LowRank
from mova_engine.adapters.lora import linear_layers
from mova_engine.adapters.reading import read_adapter
from mova_engine.adapters.writing import write_adapter
from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.config.model import get_preset
from mova_engine.files.results import write_result
from mova_engine.models.mova import Mova
from mova_engine.ops import bind


def adapter(components: tuple[str, ...], size: float) -> Adapter:
    """Of `size` bytes, for the layers of these components."""
    mova = Mova(get_preset("mova-360p"), bind(get_backend("cpu")), "meta")
    layers = {name: x for name, x in linear_layers(mova).items() if name.partition(".")[0] in components}
    rank = max(1, round(size / 2 / sum(x.in_features + x.out_features for x in layers.values())))
    source = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.1, 0.1, generator=source)

    found = {
        name: LowRank(values(rank, x.in_features), values(x.out_features, rank), 2.0 * rank)
        for name, x in layers.items()
    }
    return Adapter(found)


def measure(dialect: str, size: float, rounds: int, work: Path) -> dict[str, Any]:
    """Seconds and bytes of one dialect."""
    known = get_dialect(dialect)
    given = adapter(known.components, size)
    suffix = ".pt" if dialect == "mova-low-resource" else ".safetensors"
    out = work / dialect if known.per_part or known.files else work / f"{dialect}{suffix}"
    write_adapter(given, out, dialect)
    files = [x for x in (out.rglob("*") if out.is_dir() else [out]) if x.is_file()]
    times = {"read": [], "safetensors": []}
    for _ in range(rounds):
        started = time.perf_counter(), time.process_time()
        read = read_adapter(out)
        times["read"].append((time.perf_counter() - started[0], time.process_time() - started[1]))
        assert read.layers.keys() == given.layers.keys(), "every layer is read"
        del read
        started = time.perf_counter(), time.process_time()
        for file in files:
            if file.suffix == ".safetensors":
                # A pass over every value, which the check of what is read makes too.
                sum(float(x.sum(dtype=torch.float32)) for x in load_file(file).values())
        times["safetensors"].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    stored = sum(x.stat().st_size for x in files)
    row: dict[str, Any] = {"bytes": stored, "files": len(files), "layers": len(given.layers)}
    for what, taken in times.items():
        if what == "read" or all(x.suffix != ".pt" for x in files):
            wall, processor = zip(*taken, strict=True)
            row |= {f"{what}_s": min(wall), f"{what}_cpu_s": min(processor)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = {}
    for dialect in DIALECTS:
        with tempfile.TemporaryDirectory() as work:
            rows[dialect] = measure(dialect, options.megabytes * 1e6, options.rounds, Path(work))
        row = rows[dialect]
        size, taken = row["bytes"] / 1e6, row["read_cpu_s"]
        print(f"{dialect:<18} {size:6.0f} MB {row['read_s']:6.2f} s, {taken:6.2f} s of processor", flush=True)
    write_result(
        options.out,
        "adapter-loading",
        circumstances(get_backend("cpu")),
        option="--out",
        rounds=options.rounds,
        dialects=rows,
    )


if __name__ == "__main__":
    main()
