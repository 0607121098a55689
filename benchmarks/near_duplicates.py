"""How long near-duplicates among so many clips take to be found, and how many of them are.

python benchmarks/near_duplicates.py [--clips 1000000] [--changed 0.05]

Fingerprints are drawn at random; a tenth of the clips are others with a share of their bits changed. `--alike` clips of
them open with the same picture, as films with one title do.
"""

import argparse
import resource
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from mova_engine.curation.duplicates import alike_pairs, duplicates_of
from mova_engine.curation.fingerprints import PICTURE_BITS, SOUND_BITS, Words
from mova_engine.errors import run_cli


def drawn(clips: int, changed: float, alike: int) -> tuple[Words, Words]:
    """Fingerprints of pictures uint64 [clips, 4] and sound [clips, 3], of which the last tenth are of changed clips."""
    numbers = np.random.default_rng(0)
    copies = clips // 10
    of = numbers.integers(0, clips - copies, copies)
    found = []
    for bits in (PICTURE_BITS, SOUND_BITS):
        words = numbers.integers(0, 2**64, (clips, bits // 64), dtype=np.uint64)
        turned = np.packbits(numbers.random((copies, bits)) < changed, axis=1).view(">u8").astype(np.uint64)
        words[-copies:] = words[of] ^ turned
        found.append(words)
    found[0][:alike, 0] = found[0][0, 0]
    return found[0], found[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--changed", type=float, default=0.05)
    parser.add_argument("--alike", type=int, default=0)
    arguments = parser.parse_args()
    clips = arguments.clips
    seen, heard = drawn(clips, arguments.changed, arguments.alike)
    start, wall = time.process_time(), time.perf_counter()
    pairs = alike_pairs(seen, heard, np.zeros(clips, bool))
    compared, compared_wall = time.process_time() - start, time.perf_counter() - wall
    texts = [[row.astype(">u8").tobytes().hex() for row in words] for words in (seen, heard)]
    start = time.process_time()
    better = duplicates_of([f"{i:024x}" for i in range(clips)], texts[0], texts[1], [1.0] * clips)
    whole = time.process_time() - start
    table = Table("", "", title=f"{clips} clips, {arguments.changed:.0%} of a copy's bits changed")
    table.add_row("comparing", f"{compared:.1f} CPU-s, {compared_wall:.1f} s")
    table.add_row("with reading text and choosing who stays", f"{whole:.1f} CPU-s")
    table.add_row("pairs that are alike", str(len(pairs)))
    table.add_row("copies found", f"{sum(each is not None for each in better[-(clips // 10) :]) / (clips // 10):.2%}")
    table.add_row("memory at most", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    Console().print(table)


if __name__ == "__main__":
    run_cli(main)
