"""Mutants of clips in every container, read from everywhere: right, or refused by name. From `tests/`:

    python -m data_pipeline.campaign --seconds 3600 --seed 1 --keep FOLDER

Prints counts by container and by mutation, and each input that was read wrongly; these are kept in FOLDER. Status 1
when there are any. Counted by themselves, and no failures: a crash or a hang of the media library, which ends a worker
only and is a refusal; and pictures at their right time that are spoilt in themselves, where a format has no checksum.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data_pipeline.mutations import MUTATIONS, mutate
from data_pipeline.ruler import CLIP, KINDS, Kind, Truth, judge, write

from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.reader_process import FatalFileError
from mova_engine.errors import MovaError

OUTCOMES = ("right", "refused", "crashed", "spoilt", "wrong")
STARTS = (0.0, 0.0, 0.4, 1.0, 1.3, 2.0, 2.7, 3.4)


@dataclass(frozen=True)
class Finding:
    """What became of one input: `outcome` of OUTCOMES, and what was said."""

    kind: str
    mutation: str
    start: float
    outcome: str
    said: str


def try_one(kind: str, mutation: str, source: Path, out: Path, seed: int) -> Finding | None:
    """Make the mutant of `source` that belongs to `seed` and read it; None where there is no such mutant."""
    rng = np.random.default_rng(seed)
    settings: Kind = KINDS[kind]
    try:
        later = mutate(source, mutation, seed, out)
    except FatalFileError:
        return None
    if later is None:
        return None
    start = float(rng.choice(STARTS))
    truth = Truth(settings.fps, settings.audio is not None, later=later)
    try:
        clip = read_clip(out, CLIP, start=start, silent="zeros")
    except FatalFileError as error:
        return Finding(kind, mutation, start, "crashed", str(error))
    except MovaError as error:
        named = str(error).startswith(f"{out}: ") and "\n" not in str(error)
        return Finding(kind, mutation, start, "refused" if named else "wrong", str(error))
    wrong = judge(clip, start, truth)
    outcome = "right" if wrong is None else "spoilt" if wrong.startswith("spoilt") else "wrong"
    return Finding(kind, mutation, start, outcome, wrong or "")


def run(folder: Path, seconds: float, seed: int, kinds: list[str], mutations: list[str], keep: Path | None):
    """Findings for `seconds` of wall-clock time."""
    sources = {}
    end = time.monotonic() + seconds
    number = seed * 10_000_000
    while time.monotonic() < end:
        number += 1
        rng = np.random.default_rng((1, number))
        kind, mutation = str(rng.choice(kinds)), str(rng.choice(mutations))
        if kind not in sources:
            sources[kind] = write(folder / f"{kind}.{KINDS[kind].suffix}", KINDS[kind])
        out = folder / f"mutant.{KINDS[kind].suffix}"
        finding = try_one(kind, mutation, sources[kind], out, number)
        if finding is None:
            continue
        if finding.outcome in ("wrong", "crashed") and keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{kind} {mutation} {number}.{KINDS[kind].suffix}").write_bytes(out.read_bytes())
        yield number, finding


def _table(findings: list[Finding], name: str) -> str:
    rows = [f"{name:24}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES)]
    for value in sorted({getattr(x, name) for x in findings}):
        counts = Counter(x.outcome for x in findings if getattr(x, name) == value)
        rows.append(f"{value:24}" + "".join(f"{counts[outcome]:10}" for outcome in OUTCOMES))
    return "\n".join(rows)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.campaign", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long to go on (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--mutations", nargs="+", choices=MUTATIONS, default=list(MUTATIONS), metavar="MUTATION")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that are read wrongly or crash")
    args = parser.parse_args()
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        for number, finding in run(Path(folder), args.seconds, args.seed, args.kinds, args.mutations, args.keep):
            findings.append(finding)
            if finding.outcome in ("wrong", "crashed"):
                what = f"{finding.kind}, {finding.mutation} {number}, start {finding.start:g}: {finding.said}"
                print(f"{finding.outcome}: {what}", flush=True)
    counts = Counter(finding.outcome for finding in findings)
    print(_table(findings, "kind"), _table(findings, "mutation"), sep="\n\n")
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    print(f"\n{len(findings)} inputs, {len({x.kind for x in findings})} containers, {args.seconds:g} s: {told}")
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
