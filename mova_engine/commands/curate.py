"""`mova curate RAW --out OUT`: cuts films into clips, measures and judges these."""

import sys
from collections.abc import Sequence

from mova_engine.config.curation_recipes import CURATE
from mova_engine.errors import counted, run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Curate as the command line says; returns 1 if too many units failed, else 0."""
    config = CURATE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.curation.curation_run import Curation

    curation = Curation(config, _say)
    result = curation.run()
    _say(f"{counted(result.clips, 'clip')}, {result.kept} kept: {curation.folder.clips}")
    if result.failures:
        _say(f"{len(result.failures)} failed: {curation.folder.failures}")
    return int(result.too_many)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_cli(main)
