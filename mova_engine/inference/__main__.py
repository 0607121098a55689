"""`python -m mova_engine.inference --checkpoint DIR --prompt TEXT [--image FILE]`, which is `mova sample`."""

import sys
from collections.abc import Sequence

from mova_engine.config.sample import SAMPLE
from mova_engine.distributed.local_launch import must_start, run_in_processes
from mova_engine.errors import run_cli
from mova_engine.rehearsal.rehearse import dry_run


def main(argv: Sequence[str] | None = None) -> int:
    """Sample clips as the command line asks; returns 0. Raises MovaError for whatever is wrong with its arguments."""
    config, options = SAMPLE.parse_both(argv)
    if config is None:
        return 0
    if options.dry_run:
        print(dry_run("mova_engine.inference.dry_run:in_this_process", config, options))
        return 0
    if must_start(options.processes):
        return run_in_processes("mova_engine.inference", sys.argv[1:] if argv is None else argv, options.processes)
    # Imported late, so that help is instant.
    from mova_engine.inference.sampling_run import run

    return run(config, options.manifest)


if __name__ == "__main__":
    run_cli(main)
