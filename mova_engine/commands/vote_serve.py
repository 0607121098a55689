"""`mova eval vote serve PAIRS`: a page on which raters compare clips without knowing whose they are."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mova_engine.config.command import Command
from mova_engine.config.limits import check, check_least, check_seed
from mova_engine.errors import require_package, run_cli, say

ABOUT = """Serve a page on which raters compare clips, two at a time, without knowing whose they are.

PAIRS is a folder with a folder of clips for each system, PAIRS/SYSTEM/PROMPT.mp4, or a list of clips (.csv, .json,
.jsonl with system, id, path, prompt). Every clip is decoded before the first rater comes. Votes are in the store at
once; several servers and raters may share one. `mova eval vote fit` says what they mean.
"""


@dataclass(frozen=True, kw_only=True)
class VoteServeConfig:
    """Which clips are compared, how raters are asked, and where the votes go."""

    pairs: Path | None = field(default=None, kw_only=False)
    """Folder of systems' folders, or list of clips."""
    system: tuple[str, ...] = ()
    """Systems as NAME=FOLDER, in place of PAIRS or beside it."""
    prompts: Path | None = None
    """File with the prompts' texts: lines of {"id", "caption"}, or of id, tab, text in a .txt file."""
    store: Path
    """SQLite file of the votes, new or begun before; the clips' blind copies go to a folder beside it."""
    question: tuple[str, ...] = ("overall",)
    """What is asked: overall, picture, sound, sync, or NAME="Another question?"."""
    loudness: Literal["asis", "level"] = "asis"
    """level: bring the clips of a prompt down to the quietest, by BS.1770, before they are heard."""
    copies: Literal["packets", "encode"] = "packets"
    """packets: as they are; encode: all as H.264 and AAC of high quality, for what browsers do not play."""
    checks: float = 0.1
    """Share of attention checks: a clip beside itself, or beside a damaged copy of itself."""
    goal: int = 40
    """Pairs for a rater, who may go on after them."""
    raters: Path | None = None
    """File of the names or codes that may vote, one a line; default: anyone."""
    no_prompts: bool = False
    """Do not show the prompts' texts."""
    tolerance: float = 0.25
    """Seconds by which clips of a prompt may differ in length without a warning."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8080
    """Port to listen on; 0 takes any free one."""
    seed: int = 0
    """Seed of sides, checks and choices."""
    workers: int = max(1, (os.cpu_count() or 2) // 2)
    """Clips checked at the same time."""
    dry_run: bool = False
    """Check the clips, say what was found, and stop: nothing is written or served."""

    def __post_init__(self) -> None:
        check_least(self, "", goal=1, workers=1, tolerance=0)
        check(0 <= self.checks <= 0.5, f"checks must lie between 0 and 0.5, got {self.checks}")
        check(0 <= self.port < 1 << 16, f"port must lie between 0 and 65535, got {self.port}")
        check_seed(self.seed)


VOTE_SERVE = Command("mova eval vote serve", VoteServeConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the clips, then serve until SIGINT or SIGTERM."""
    config = VOTE_SERVE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.evaluation.votes.serve_study import (
        StudySettings,
        checked_study,
        read_questions,
        read_raters,
        ready_app,
    )
    from mova_engine.evaluation.votes.study_clips import read_study
    from mova_engine.evaluation.votes.vote_store import VoteStore
    from mova_engine.files.writable import check_writable

    if not config.dry_run:
        for package in ("fastapi", "uvicorn"):
            require_package(package, "mova eval vote serve")
    settings = StudySettings(
        questions=read_questions(config.question),
        loudness=config.loudness,
        copying=config.copies,
        check_share=config.checks,
        goal=config.goal,
        seed=config.seed,
        raters=read_raters(config.raters),
        show_prompts=not config.no_prompts,
        tolerance=config.tolerance,
        workers=config.workers,
    )
    study = read_study(config.pairs, config.system, config.prompts)
    check_writable(config.store.parent, "--store")
    if config.store.exists():
        VoteStore.open(config.store)
    folder = config.store.with_name(f"{config.store.stem}.clips")
    clips = checked_study(study, settings, None if config.dry_run else folder, say)
    if config.dry_run:
        return 0
    from mova_engine.web.listening import listening_socket, serve_app

    listener = listening_socket(config.host, config.port)
    app = ready_app(study, clips, settings, VoteStore.make(config.store), folder)
    host, port = listener.getsockname()[:2]
    if host in ("127.0.0.1", "::1"):
        say("only this machine can reach the page; --host 0.0.0.0 lets others in")
    else:
        say("warning: whoever reaches this machine can vote, and nothing is encrypted; --raters limits who may")
    say(f"votes go to {config.store}")
    say(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}/   (Ctrl-C ends it)")
    serve_app(app, listener)
    return 0


if __name__ == "__main__":
    run_cli(main)
