"""`mova curate RAW --out OUT`: cuts films into clips, measures and judges these."""

from collections.abc import Sequence

from mova_engine.config.curation_recipes import CURATE
from mova_engine.errors import counted, run_cli, say


def main(argv: Sequence[str] | None = None) -> int:
    """Curate as the command line says; returns 1 if too many units or clips failed, else 0."""
    config = CURATE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.curation.curation_run import Curation
    from mova_engine.curation.funnel import told_funnel

    curation = Curation(config, say)
    result = curation.run()
    for line in told_funnel(result.funnel):
        say(line)
    if failed := curation.folder.failures.read_bytes().count(b"\n"):
        say(f"{counted(failed, 'failure')}: {curation.folder.failures}")
    say(f"clips: {curation.folder.clips}")
    return int(result.too_many)


if __name__ == "__main__":
    run_cli(main)
