"""The commands on docs/plan.md and what they print, and its table of memory. Run as a program, it renews the page."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "plan.md"
_INDENT, _PROMPT = "    ", "    $ mova plan "


# The table of memory: sizes in GiB of cards and hosts, and what is planned for each. A card's speed is this one's.
TASKS, MODELS = ("inference", "lora"), ("mova-360p", "mova-720p")
CARDS, HOSTS = (12, 16, 24, 32, 48, 80), (32, 64, 128)
SPEED = "rtx4090"
_BEGIN, _END = "<!-- memory table -->", "<!-- end of the memory table -->"


@cache
def limited(task: str, model: str, card: int, host: int):
    """(best plan or None, changes that would make one fit) of one device within these sizes."""
    from mova_engine.config.model import get_preset
    from mova_engine.predict.calibrate import calibrated
    from mova_engine.predict.job import Job, Layout
    from mova_engine.predict.remedies import remedies
    from mova_engine.predict.search import best

    job, hardware = Job(get_preset(model), task, sequential=True), calibrated(SPEED)
    hardware = hardware.with_limits(vram=card * 2**30, ram=host * 2**30)
    plans = best(job, 1, hardware)
    return (plans[0], []) if plans else (None, list(remedies(job, Layout(), hardware, {})))


def _cell(task: str, model: str, card: int, host: int) -> str:
    plan, would = limited(task, model, card, host)
    if plan is None:
        return f"no; fits: {would[0].words}" if would else "no"
    memory = plan.memory
    seconds = f"{plan.seconds_per_clip:.0f}" if plan.seconds_per_clip >= 100 else f"{plan.seconds_per_clip:.1f}"
    return f"{plan.run.policy.mode}: {memory.total / 1e9:.1f} + {memory.on_host / 1e9:.1f} GB, {seconds} s"


def memory_table() -> str:
    """The table in Markdown."""
    titles = {"inference": "sampling, a step of two evaluations", "lora": "LoRA, a clip"}
    lines = [
        f"| planned | card | {' | '.join(f'host of {host} GiB' for host in HOSTS)} |",
        "|---" * (2 + len(HOSTS)) + "|",
    ]
    for task, model in product(TASKS, MODELS):
        for card in CARDS:
            cells = " | ".join(_cell(task, model, card, host) for host in HOSTS)
            lines.append(f"| {model.removeprefix('mova-')}, {titles[task]} | {card} GiB | {cells} |")
    return "\n".join(lines)


def shown_table(text: str) -> str:
    """The table that a page shows."""
    return text.partition(_BEGIN)[2].partition(_END)[0].strip("\n")


def blocks(text: str) -> Iterator[tuple[str, str, int, int]]:
    """(arguments, printed text, first line, line after the last) of each command block."""
    lines = text.split("\n")
    for start, line in enumerate(lines):
        if not line.startswith(_PROMPT):
            continue
        end = start + 1
        while end < len(lines) and (lines[end].startswith(_INDENT) or not lines[end]):
            end += 1
        while not lines[end - 1]:
            end -= 1
        shown = "\n".join(printed.removeprefix(_INDENT) for printed in lines[start + 1 : end])
        yield line.removeprefix(_PROMPT), shown.strip("\n"), start, end


def output(arguments: str) -> str:
    """What the command prints, run in the repository's root."""
    from mova_engine.plan.__main__ import main

    held, before = StringIO(), Path.cwd()
    os.chdir(ROOT)
    try:
        with redirect_stdout(held):
            main(shlex.split(arguments))
    finally:
        os.chdir(before)
    return held.getvalue().strip("\n")


def renewed(text: str) -> str:
    """The page with every block's output made again."""
    lines = text.split("\n")
    for arguments, _, start, end in reversed(list(blocks(text))):
        printed = [_INDENT + line if line else "" for line in output(arguments).split("\n")]
        lines[start + 1 : end] = ["", *printed]
    head, _, rest = "\n".join(lines).partition(_BEGIN)
    return f"{head}{_BEGIN}\n{memory_table()}\n{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
