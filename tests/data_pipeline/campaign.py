"""Mutants of clips in every container, read from everywhere: right, or refused by name. From `tests/`:

    python -m data_pipeline.campaign --seconds 3600 --seed 1 --keep FOLDER --json FILE

Prints counts by kind of file and by mutation, and each input that was read wrongly; these are kept in FOLDER. Status 1
when there are any. Counted by themselves, and no failures: a crash or a hang of the media library, which ends a worker
only and is a refusal; and harm that the format cannot tell of, by the rules of `untold`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from data_pipeline.mutations import BYTES, MUTATIONS, Mutant, mutate
from data_pipeline.ruler import CLIP, KINDS, Kind, Truth, judge, write

from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.reader_process import FatalFileError
from mova_engine.errors import MovaError

OUTCOMES = ("right", "refused", "crashed", "undetectable", "wrong")
# Codecs and containers with checksums; mutations that spoil content but leave it in its place.
CHECKED = ("ffv1", "apng", "flac", "ac3")
SUMMED = ("ogv", "mkv")
SPOILING = (*(mutation.__name__ for mutation in BYTES), "joined_to_its_middle", "spoilt")
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
        made = mutate(source, mutation, seed, out)
    except FatalFileError:
        return None
    if made is None:
        return None
    start = float(rng.choice(STARTS))
    truth = Truth(settings.fps, settings.audio is not None, later=made.later)
    try:
        clip = read_clip(out, CLIP, start=start, silent="zeros")
    except FatalFileError as error:
        return Finding(kind, mutation, start, "crashed", str(error))
    except MovaError as error:
        named = str(error).startswith(f"{out}: ") and "\n" not in str(error)
        return Finding(kind, mutation, start, "refused" if named else "wrong", str(error))
    wrong = judge(clip, start, truth)
    if wrong is None:
        return Finding(kind, mutation, start, "right", "")
    reason = untold(settings, mutation, made, wrong)
    if reason is None:
        return Finding(kind, mutation, start, "wrong", wrong)
    return Finding(kind, mutation, start, "undetectable", f"{wrong}: {reason}")


def untold(kind: Kind, mutation: str, made: Mutant, wrong: str) -> str | None:
    """Why no reader of such a file can know that it is `wrong`, as `judge` has it; None where one can.

    Content: whatever decodes is right to a codec without checksums, in a container without. The pages of Ogg and the
    clusters of FFmpeg's .mkv have some, which hold for packets as they were written. Places: see `Mutant.untold`.
    """
    if not wrong.startswith("spoilt"):
        # Pictures come at a constant rate here, which tells.
        return made.untold if "sound" in wrong else None
    codec = kind.audio if "sound" in wrong else kind.video
    summed = kind.suffix in SUMMED and mutation != "spoilt"
    if mutation not in SPOILING or codec in CHECKED or summed:
        return None
    return f"neither {codec} nor .{kind.suffix} has checksums"


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


def _counts(findings: list[Finding], name: str) -> dict[str, dict[str, int]]:
    """Inputs and outcomes for each value of `name`, and "total"."""
    groups = {value: [x for x in findings if getattr(x, name) == value] for value in _values(findings, name)}
    groups["total"] = findings
    return {
        value: {"inputs": len(found), **{outcome: sum(x.outcome == outcome for x in found) for outcome in OUTCOMES}}
        for value, found in groups.items()
    }


def _values(findings: list[Finding], name: str) -> list[str]:
    return sorted({getattr(x, name) for x in findings})


def _table(counts: dict[str, dict[str, int]], name: str) -> str:
    rows = [f"{name:24}" + "".join(f"{column:>14}" for column in ("inputs", *OUTCOMES))]
    rows += [f"{value:24}" + "".join(f"{count:14}" for count in row.values()) for value, row in counts.items()]
    return "\n".join(rows)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.campaign", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long to go on (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--mutations", nargs="+", choices=MUTATIONS, default=list(MUTATIONS), metavar="MUTATION")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that are read wrongly or crash")
    parser.add_argument("--json", type=Path, help="file for the counts, the seconds, and what is not right or refused")
    args = parser.parse_args()
    findings, numbers, begun = [], [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, finding in run(Path(folder), args.seconds, args.seed, args.kinds, args.mutations, args.keep):
            findings.append(finding)
            numbers.append(number)
            if finding.outcome in ("wrong", "crashed"):
                what = f"{finding.kind}, {finding.mutation} {number}, start {finding.start:g}: {finding.said}"
                print(f"{finding.outcome}: {what}", flush=True)
    seconds = time.monotonic() - begun
    tables = {name: _counts(findings, name) for name in ("kind", "mutation")}
    print(*(_table(counts, name) for name, counts in tables.items()), sep="\n\n")
    reasons = Counter(x.said.rsplit(": ", 1)[-1] for x in findings if x.outcome == "undetectable")
    print("\nundetectable:", *(f"{count:6} {reason}" for reason, count in reasons.most_common()), sep="\n")
    counts = tables["kind"]["total"]
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    kinds = _values(findings, "kind")
    containers = {KINDS[kind].suffix for kind in kinds}
    print(f"\n{len(findings)} inputs, {len(kinds)} kinds, {len(containers)} containers, {seconds:.0f} s: {told}")
    if args.json:
        listed = [
            {"number": number, **asdict(x)}
            for number, x in zip(numbers, findings, strict=True)
            if x.outcome not in ("right", "refused")
        ]
        said = {"seed": args.seed, "seconds": seconds, "undetectable": reasons, **tables, "findings": listed}
        args.json.write_text(json.dumps(said, indent=1) + "\n")
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
