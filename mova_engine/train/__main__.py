"""`python -m mova_engine.train [--recipe nano] [--device npu] [--data DIR] [--out DIR] [--optim.lr 1e-3 ...]`."""

import sys
from collections.abc import Sequence

from rich.console import Console

from mova_engine.config.recipes import TRAIN
from mova_engine.distributed.local_launch import must_start, run_in_processes
from mova_engine.errors import run_cli, show_warnings
from mova_engine.rehearsal.rehearse import dry_run


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line asks; returns the exit status. MovaError for what the user can put right."""
    config, options = TRAIN.parse_both(argv)
    if config is None:
        return 0
    if options.dry_run:
        print(dry_run("mova_engine.train.dry_run:in_this_process", config, options))
        return 0
    if must_start(options.processes):
        return run_in_processes("mova_engine.train", sys.argv[1:] if argv is None else argv, options.processes)
    # Imported late, so that help is instant.
    from mova_engine.train.trainer import Trainer

    console = Console(highlight=False, markup=False, soft_wrap=True)
    # Through the console, which prints above a progress bar and elsewhere leaves a line whole.
    show_warnings(console.print)
    return Trainer(config, console).run()


if __name__ == "__main__":
    run_cli(main)
