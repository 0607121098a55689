"""`mova bench NAME`: measure, checked first; make the tables; compare two result files."""

from collections.abc import Sequence

from mova_engine.bench.settings import MEASUREMENTS
from mova_engine.config.command import choose_command, is_help


def usage() -> str:
    """What `mova bench` alone prints."""
    lines = [f"  {name:12} {command.about}" for name, command in MEASUREMENTS.items()]
    # A command of its own, which needs no measurement's settings.
    lines.append(f"  {'traffic':12} What processes that share a clip send, by formula and counted.")
    head = (
        "usage: mova bench NAME [options]      (mova bench NAME --help tells the options)",
        "       mova bench --suite CARD        all that is to be measured on a card, in slices (--suite h100 --help)",
        "",
    )
    return "\n".join((*head, *lines))


def run_measurement(argv: Sequence[str]) -> int:
    """Run one measurement, print its rows, write the result file; or read result files."""
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
