"""`mova bench NAME`: measure, checked first; make the tables; compare two result files."""

import sys
from collections.abc import Sequence

from mova_engine.bench.settings import MEASUREMENTS, SuiteConfig
from mova_engine.config.command import Command, choose_command, is_help
from mova_engine.errors import run_cli

SUITE = Command("mova bench", SuiteConfig, SuiteConfig.__doc__ or "")


def usage() -> str:
    """What `mova bench` alone prints."""
    lines = [f"  {name:12} {command.about}" for name, command in MEASUREMENTS.items()]
    # A command of its own, which needs no measurement's settings.
    lines.append(f"  {'traffic':12} What processes that share a clip send, by formula and counted.")
    head = (
        "usage: mova bench NAME [options]      (mova bench NAME --help tells the options)",
        "       mova bench --suite SUITE       several measurements in a row into one file",
        "",
    )
    return "\n".join((*head, *lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement, print its rows, write the result file; or a suite of them; or read result files."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(word.split("=")[0] == "--suite" for word in argv):
        return _suite(argv)
    if is_help(argv):
        print(usage())
        return 0
    name, command = choose_command(argv, MEASUREMENTS, "measurement")
    config = command.parse(argv[1:])
    if config is None:
        return 0
    # Imported late, so that help is instant.
    if name == "report":
        from mova_engine.bench.result_tables import write_report

        return write_report(config.files, config.out)
    if name == "compare":
        from mova_engine.bench.compare import print_comparison

        return print_comparison(config.before, config.after)
    from mova_engine.bench.suites import measure

    return measure(name, config)


def _suite(argv: Sequence[str]) -> int:
    config = SUITE.parse(argv)
    if config is None:
        return 0
    from mova_engine.bench.campaigns import run_suite

    return run_suite(config)


if __name__ == "__main__":
    run_cli(main)
