"""`mova eval compare A B`: two evaluations on the clips that both have."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.errors import counted, require_package, run_cli

ABOUT = """Compare two evaluations.

Of every number both have: the means on their common clips, by name, and the mean difference (second minus first) with
an interval that holds 95 % of the means of clips drawn anew. Where it leaves out 0, the better one is named.
"""


@dataclass(frozen=True, kw_only=True)
class EvalCompareConfig:
    """Which evaluations are compared."""

    first: Path = field(kw_only=False)
    """Folder that `mova eval` wrote."""
    second: Path = field(kw_only=False)
    """Folder of the other one."""


COMPARE = Command("mova eval compare", EvalCompareConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each number."""
    config = COMPARE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.evaluation.comparison_of_sets import compare

    require_package("pyarrow", "mova eval compare")
    found, common = compare(config.first, config.second)
    sys.stdout.write(f"{counted(common, 'clip')} in both\n")
    for pair in found:
        interval = "" if pair.interval is None else " [{:+.4g}, {:+.4g}]".format(*pair.interval)
        verdict = f"  {pair.verdict} is better" if pair.verdict else ""
        sys.stdout.write(
            f"{pair.column:18} {pair.first:.4g} -> {pair.second:.4g}: {pair.difference:+.4g}{interval} "
            f"({counted(pair.clips, 'clip')}){verdict}\n"
        )
    return 0


if __name__ == "__main__":
    run_cli(main)
