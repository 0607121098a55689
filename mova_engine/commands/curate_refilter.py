"""`mova curate refilter OUT`: other filters over clips that were measured."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.config.limits import check
from mova_engine.errors import counted, require_package, run_cli

ABOUT = """Try other filters on clips that mova curate has measured.

Reads stored numbers alone: nothing is decoded or measured. Prints the new funnel and how many verdicts change; with
--write they become the run's, and clips.parquet and metadata.jsonl are written anew. Without options it prints the
funnel as it is.
"""


@dataclass(frozen=True, kw_only=True)
class CurateRefilterConfig:
    """Which run, and by what its clips are judged."""

    out: Path = field(kw_only=False)
    """Folder that `mova curate` wrote."""
    where: str | None = None
    """One condition in place of all filters: "desync <= 0.5 or imagebind >= 0.2"."""
    filters: dict[str, str] = field(default_factory=dict[str, str])
    """Conditions by name, in place of the run's filters of the same names, or beside them."""
    without: tuple[str, ...] = ()
    """Names of filters that are left out."""
    write: bool = False
    """Make the new verdicts those of the run."""

    def __post_init__(self) -> None:
        check(self.where is None or not self.without, "--where takes the place of all filters: leave out --without")


REFILTER = Command("mova curate refilter", CurateRefilterConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the filters would drop, and with --write drop it."""
    config = REFILTER.parse(argv)
    if config is None:
        return 0
    require_package("pyarrow", "mova curate refilter")
    # Imported late, so that help is instant.
    from mova_engine.curation.clip_file import ClipFile
    from mova_engine.curation.funnel import told_funnel
    from mova_engine.curation.refilter import changed_judging, refilter, write_refiltered

    file = ClipFile.open(config.out)
    found = refilter(file, changed_judging(file.judging, config.where, config.filters, config.without))
    lines = told_funnel(found.funnel)
    changed = {pair: count for pair, count in found.changes.items() if pair[0] != pair[1]}
    lines += [f"{counted(count, 'clip')}: {before} -> {after}" for (before, after), count in sorted(changed.items())]
    lines += [] if changed else ["no verdict changes"]
    lines += _unmeasured(found.unmeasured)
    if "duplicate_of" in found.judging.judge.columns and any(after == "keep" for _, after in changed):
        lines.append("repetitions among clips that are kept now are found by mova curate with these filters")
    if config.write:
        write_refiltered(file, found)
        lines.append(f"written: {config.out / 'clips.parquet'} and {config.out / 'metadata.jsonl'}")
    elif changed:
        lines.append("nothing was written: --write makes these verdicts the run's")
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def _unmeasured(scores: Mapping[str, int]) -> list[str]:
    return [
        f"{counted(count, 'clip')} unknown for want of the score {name}, which was not measured of them; "
        "mova curate with these filters does"
        for name, count in scores.items()
        if count
    ]


if __name__ == "__main__":
    run_cli(main)
