"""`mova enhance "PROMPT" --backend endpoint --url URL --model NAME`: a prompt as a model of clips wants it, checked."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mova_engine.config.command import Command
from mova_engine.config.enhance import EnhanceConfig
from mova_engine.config.limits import check
from mova_engine.config.model import get_preset
from mova_engine.errors import run_cli

if TYPE_CHECKING:
    from mova_engine.inference.prompts.enhanced_prompt import EnhancedPrompt

ABOUT = """Rewrite prompts in the form that a model of clips was trained on, by a language model, and check the result.

Quoted speech stays letter for letter, the language stays, the last paragraph is about the sound. What fails a check
twice is not used: the prompt stays as it is, and a warning says why. An endpoint is SENT the prompts and pictures.
"""
# The model whose size frames have where no model folder is named.
_PRESET = "mova-720p"


@dataclass(frozen=True)
class PromptArgument:
    """What stands before all options."""

    prompt: str | None = None
    """The prompt. Or --prompts."""


@dataclass(frozen=True, kw_only=True)
class EnhanceCommand(EnhanceConfig, PromptArgument):
    """Which prompts are enhanced, by what. Fields of the last base come first, as positional ones must."""

    prompts: Path | None = None
    """Folder of clips (caption and first frame of each), or .txt with one prompt a line."""
    image: Path | None = None
    """First frame: a picture, or a video's first one."""
    checkpoint: Path | None = None
    """Model folder: its text encoder counts the tokens, its clips' size is that of first frames; default: tokens are
    not counted.
    """
    device: str | None = None
    """Of a local model: cpu, cuda or npu; default: the first of npu, cuda, cpu that works."""
    out: Path | None = None
    """File of JSON lines to write, one for each prompt."""

    def __post_init__(self) -> None:
        one = (self.prompt is None) != (self.prompts is None)
        check(one, "what to enhance: give a prompt, or --prompts, a folder of clips or a text file; one of the two")
        check(self.image is None or self.prompts is None, "--image goes with a single prompt")
        check(self.backend != "none", "what enhances: --backend endpoint with --url and --model, or --backend local")
        check(self.device is None or self.backend == "local", "--device goes with --backend local")
        super().__post_init__()


ENHANCE = Command("mova enhance", EnhanceCommand, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print each prompt, what became of it, and the checks; status 1 where one stays as it is."""
    config = ENHANCE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.backend import get_backend
    from mova_engine.checkpoints.locate import open_model
    from mova_engine.files.atomic import write_atomic
    from mova_engine.inference.prompts.prompt_enhancer import PromptEnhancer
    from mova_engine.inference.prompts.text_limit import text_limit
    from mova_engine.inference.requests import Prompt, read_frame, read_prompts

    limit, clip = None, get_preset(_PRESET).clip
    if config.checkpoint is not None:
        folder, model = open_model(config.checkpoint, say=_say)
        limit, clip = text_limit(folder, model), model.clip
    if config.prompts is not None:
        prompts = read_prompts(config.prompts, clip)
    else:
        prompts = [Prompt(config.prompt or "", None if config.image is None else read_frame(config.image, clip))]
    enhancer = PromptEnhancer(config, limit, None if config.device is None else get_backend(config.device))
    found = enhancer.enhance_all([(prompt.caption, prompt.first_frame) for prompt in prompts])
    for each in found:
        sys.stdout.write(told(each))
    if config.out is not None:
        rows = [json.dumps(each.as_json(), ensure_ascii=False) + "\n" for each in found]
        write_atomic(config.out, "".join(rows).encode())
    return 0 if all(each.used == "enhanced" for each in found) else 1


def told(found: "EnhancedPrompt") -> str:
    """What became of a prompt, for a person: both texts, the checks, the reason."""
    from mova_engine.inference.prompts.enhanced_prompt import ATTEMPTS

    if found.cached:
        how = "kept from an earlier run"
    else:
        how = f"{found.attempts} of {ATTEMPTS} attempts"
    lines = [f"prompt    {found.original}"]
    if found.frame:
        lines += [f"frame     {' '.join(found.frame.split())}"]
    if found.used == "enhanced":
        first, *others = found.prompt.split("\n")
        lines += [f"enhanced  {first}", *(f"          {line}".rstrip() for line in others)]
    else:
        lines += ["enhanced  no: the prompt stays as it is"]
    lines += [f"by        {found.model} ({found.backend}), rules {found.rules_version}, {how}"]
    words = {True: "passed", False: "failed", None: "not made"}
    for check_ in found.checks:
        reason = f": {check_.reason}" if check_.reason else ""
        lines += [f"  {check_.name:12}{words[check_.passed]}{reason}"]
    if found.warning:
        lines += [f"warning   {found.warning}"]
    return "\n".join(lines) + "\n\n"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    run_cli(main)
