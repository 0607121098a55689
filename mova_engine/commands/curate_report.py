"""`mova curate report OUT`: a curation as a page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.config.limits import check_least
from mova_engine.errors import require_package, run_cli, say

ABOUT = """Write what a curation found as a page that opens without a server.

The funnel, how the numbers lie about their thresholds, sheets of what each filter drops, hours of source that a core
does in a day, and the order of filters that measures least (order.txt, which mova curate --order takes).
"""


@dataclass(frozen=True, kw_only=True)
class CurateReportConfig:
    """Which curation."""

    out: Path = field(kw_only=False)
    """Folder that `mova curate` wrote."""
    sheets: int = 4
    """Clips that are shown of what each filter drops; 0: no film is read."""

    def __post_init__(self) -> None:
        check_least(self, "", sheets=0)


REPORT = Command("mova curate report", CurateReportConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, and print the funnel and the order."""
    config = REPORT.parse(argv)
    if config is None:
        return 0
    require_package("pyarrow", "mova curate report")
    # Imported late, so that help is instant.
    from mova_engine.curation.curation_report import ORDER, PAGE, write_report
    from mova_engine.curation.filter_order import clip_seconds
    from mova_engine.curation.funnel import told_funnel

    facts = write_report(config.out, config.sheets, say)
    for line in told_funnel(facts.funnel):
        say(line)
    if facts.seconds and facts.filters:
        now, best = clip_seconds(facts.given), clip_seconds(facts.derived)
        say(f"order that measures least: {', '.join(each.name for each in facts.derived)}")
        say(f"  {best:.3f} s a clip; the run's order {now:.3f} s; kept in {config.out / ORDER}")
    say(f"report: {config.out / PAGE}")
    return 0


if __name__ == "__main__":
    run_cli(main)
