"""Memory and time of `mova eval` over many clips: does the process grow with the number of clips?

    python -m benchmarks.evaluation_memory --out benchmarks/results/evaluation-memory.json

Writes --clips small clips (0.5 s of 48 x 32 pixels with sound, all different), evaluates them with the scores of sound
that need no network and the lag of speech, and reads the resident memory of the process and its readers after every
50th clip. "growth" is what the least-squares line through the second half of the readings adds over 1,000 clips.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.data.media.write import write_mp4
from mova_engine.evaluation.evaluation_run import TABLE, evaluate
from mova_engine.files.results import write_result
from mova_engine.scores.score_file import chosen_scores

SCORES = ("loudness", "sound-quality", "speech-lag")
FPS, RATE, FRAMES = 24, 48000, 12
EVERY = 50


def write_clips(folder: Path, count: int) -> None:
    """Clips of noise that moves, each another one."""
    for i in range(count):
        drawn = np.random.default_rng(i)
        picture = drawn.integers(0, 255, (32, 48, 3), np.uint8)
        pictures = np.stack([np.roll(picture, step, 1) for step in range(FRAMES)])
        sound = 0.1 * drawn.standard_normal(FRAMES * RATE // FPS).astype(np.float32)
        write_mp4(folder / f"{i:05d}.mp4", pictures, sound, fps=FPS, sample_rate=RATE)


def resident() -> int:
    """Bytes of memory of this process and its descendants that are theirs alone, and their share of the rest."""
    return sum(_proportional(pid) for pid in _family())


def _family() -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [int(Path("/proc/self").resolve().name)]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def measure(clips: int, workers: int) -> dict[str, Any]:
    """Readings over an evaluation."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "clips"
        folder.mkdir()
        write_clips(folder, clips)
        readings: list[tuple[int, int]] = []
        done = 0

        def say(line: str) -> None:
            nonlocal done
            if line.startswith("["):
                done += 1
                if done % EVERY == 0:
                    readings.append((done, resident()))

        began = time.perf_counter(), time.process_time()
        result = evaluate(folder, Path(work) / "out", chosen_scores(SCORES)[0], workers, say)
        took = time.perf_counter() - began[0], time.process_time() - began[1]
        table = (Path(work) / "out" / TABLE).stat().st_size
    counts, sizes = np.array(readings, float)[len(readings) // 2 :].T
    slope = float(np.polyfit(counts, sizes, 1)[0])
    return {
        "clips": clips,
        "workers": workers,
        "scores": SCORES,
        "measured": sum(row["rms"] is not None for row in result.rows),
        "seconds": took[0],
        "process_seconds": took[1],
        "readings": [{"clips": count, "bytes": size} for count, size in readings],
        "largest": max(size for _, size in readings),
        "growth": slope * 1000,
        "table_bytes": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    facts = circumstances(get_backend("cpu"))
    found = measure(given.clips, given.workers)
    print(
        f"{found['measured']} clips, {found['largest'] / 2**20:.0f} MiB at most, {found['growth'] / 2**20:+.1f} MiB "
        f"over 1,000 clips, {found['seconds'] / found['clips']:.3f} s a clip"
    )
    write_result(given.out, "evaluation-memory", facts, option="--out", **found)


if __name__ == "__main__":
    main()
