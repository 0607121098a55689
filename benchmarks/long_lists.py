"""`python -m benchmarks.long_lists`: a list of millions of clips, opened, held and shuffled.

Makes a Parquet manifest of clips in shards, and measures, in processes of their own: how long it takes to make the
table from it, once, and to open it afterwards, in CPU seconds too, which a busy machine changes less; the anonymous
memory (RssAnon) of a process with torch that opens the list and draws batches from its loader, before and after; the
time in which the rows of a batch are found. The order is measured beside true permutations of as many numbers. First it
is checked that rows come back as they were written, and that the first epochs of smaller lists hold each clip once.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.data.permutation import Permutation
from mova_engine.errors import MovaError, run_cli
from mova_engine.files.results import write_result

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from data_pipeline.shuffling import distances

WORDS = (
    "a",
    "red",
    "ball",
    "rolls",
    "over",
    "the",
    "wet",
    "stones",
    "while",
    "rain",
    "drums",
    "on",
    "tin",
    "roofs",
    "and",
    "dogs",
)
PER_SHARD, BLOCK = 1000, 1 << 18


def caption(number: int) -> str:
    """The made-up caption of a clip: 24 words, about 110 characters."""
    state, words = number * 2654435761 % 2**32, []
    for _ in range(24):
        state = (state * 1664525 + 1013904223) % 2**32
        words.append(WORDS[state >> 16 & 15])
    return " ".join(words)


def write_manifest(path: Path, rows: int) -> None:
    """A manifest of `rows` clips of 4 MiB in shards of PER_SHARD. Captions recur after BLOCK rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    captions = pa.array([caption(number) for number in range(min(rows, BLOCK))])
    digests = pa.array([hashlib.sha256(str(number).encode()).hexdigest() for number in range(min(rows, BLOCK))])
    writer = None
    for first in range(0, rows, BLOCK):
        numbers = np.arange(first, min(first + BLOCK, rows))
        within = pa.array(numbers % PER_SHARD)
        text = pa.array(numbers).cast(pa.string())
        shard = pa.compute.binary_join_element_wise(
            "s3://bucket/", pa.array(numbers // PER_SHARD).cast(pa.string()), ".tar", ""
        )
        table = pa.table(
            {
                "id": pa.compute.binary_join_element_wise("clip-", text, ""),
                "caption": captions[: len(numbers)],
                "start": pa.array((numbers % 7) / 2),
                "shard": shard.dictionary_encode(),
                "member": pa.compute.binary_join_element_wise(within.cast(pa.string()), ".mp4", ""),
                "offset": pa.array(numbers % PER_SHARD * (4 << 20) + 512),
                "size": pa.array(np.full(len(numbers), 4 << 20)),
                "sha256": digests[: len(numbers)],
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


MEASURE = """
import json, sys, time
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return {key: 1024 * int(next(x for x in lines if x.startswith(name)).split()[1])
            for key, name in (("now", "RssAnon"), ("peak", "VmHWM"), ("file", "RssFile"))}
import torch, mova_engine.train.trainer
from mova_engine.data.clip_sources import read_clips
from mova_engine.data.loader import build_loader, _Indices
from mova_engine.data.clip_sources import LISTED
from pathlib import Path
path, batches, size = Path(sys.argv[1]), int(sys.argv[2]), 8
before = anonymous()
begin, cpu = time.perf_counter(), time.process_time()
clips = read_clips(path)
opened, opened_cpu = time.perf_counter() - begin, time.process_time() - cpu
class Dataset:
    in_memory, marks = False, None
    entries, content_digest = clips, clips.content_digest
    def __len__(self): return len(clips)
    def order_digest(self, shuffle): return clips.order_digest
begin = time.perf_counter()
loader = build_loader(Dataset(), size, seed=1, rank=3, world=8)
built = time.perf_counter() - begin
stream = iter(_Indices(loader))
times, seen, text = [], [], 0
drawn_cpu = time.process_time()
for _ in range(batches):
    begin = time.perf_counter()
    rows = next(stream)
    entries = [clips[row] for row in rows]
    times.append(time.perf_counter() - begin)
    seen += rows
    text += sum(len(e.caption) for e in entries)
drawn_cpu = (time.process_time() - drawn_cpu) / batches
times.sort()
last = clips[len(clips) - 1]
print(json.dumps({
    "clips": len(clips), "open_s": opened, "open_cpu_s": opened_cpu, "build_s": built,
    "batch": size, "batches": batches,
    "batch_ms_median": 1e3 * times[len(times) // 2], "batch_ms_worst": 1e3 * times[-1],
    "batch_cpu_ms": 1e3 * drawn_cpu,
    "anonymous_before": before["now"], "anonymous_after": anonymous()["now"], "file_after": anonymous()["file"],
    "distinct": len(set(seen)), "state_bytes": len(json.dumps(loader.state_dict())), "last": last.id,
}))
"""


def in_a_process(manifest: Path, batches: int) -> dict[str, Any]:
    """What MEASURE finds of a manifest."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(manifest), str(batches)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MovaError(f"the measurement failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def check_order(rows: int) -> None:
    """Raise MovaError unless each epoch of lists of several sizes holds each number once."""
    for count in (1, 2, 1000, 65_537, 1_000_003, min(rows, 5_000_000)):
        for epoch in range(3):
            found = Permutation(count, 1, epoch)(np.arange(count))
            if np.bincount(found, minlength=count).max() != 1 or len(found) != count:
                raise MovaError(f"the order of {count} clips does not hold each once")


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=27_000_000)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--orders", type=int, default=3, help="permutations measured of either kind")
    parser.add_argument("--folder", type=Path, help="where the list is made; default: a temporary folder")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "long-lists.json")
    given = parser.parse_args()
    check_order(given.rows)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        manifest = Path(folder) / "clips.parquet"
        write_manifest(manifest, given.rows)
        first = in_a_process(manifest, 10)
        again = in_a_process(manifest, given.batches)
        on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path != manifest and path.is_file())
        sizes = {"manifest_bytes": manifest.stat().st_size, "table_bytes": on_disk}
    for found in (first, again):
        if found["clips"] != given.rows or found["last"] != f"clip-{given.rows - 1}":
            raise MovaError("the list that was read is not the one that was written")
    numbers = np.arange(given.rows)
    begin = time.perf_counter()
    Permutation(given.rows, 0, 0)(numbers[:1_000_000])
    rate = min(given.rows, 1_000_000) / (time.perf_counter() - begin)
    drawn = [distances(Permutation(given.rows, 5, epoch)(numbers)) for epoch in range(given.orders)]
    true = [distances(np.random.default_rng((5, k)).permutation(given.rows)) for k in range(given.orders)]
    row = {
        "rows": given.rows,
        **sizes,
        "first_open_s": first["open_s"],
        "first_open_cpu_s": first["open_cpu_s"],
        **{name: again[name] for name in again if name not in ("clips", "last")},
        "order_per_s": rate,
        "order": {name: [round(each[name], 3) for each in drawn] for name in drawn[0]},
        "true_permutation": {name: [round(each[name], 3) for each in true] for name in true[0]},
    }
    write_result(given.json, "long lists", circumstances(get_backend("cpu")), rows=[row])
    print(json.dumps(row, indent=1))
    return 0


if __name__ == "__main__":
    run_cli(main)
