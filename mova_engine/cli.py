"""The console script `mova`: one name for the engine's commands. `python -m mova_engine COMMAND` is the same."""

import importlib
import sys
from collections.abc import Sequence

from mova_engine import __version__, load_devices_when_asked
from mova_engine.errors import MovaError, run_cli, suggest

# Command -> (module with `main(argv) -> int`, what it does). Imported only when asked for, so that help is instant.
COMMANDS = {
    "train": ("mova_engine.train.__main__", "train or fine-tune a model by a recipe"),
    "sample": ("mova_engine.inference.__main__", "generate clips with sound from a caption and a first frame"),
    "lora inspect": ("mova_engine.commands.lora_inspect", "print what adapters hold, in any tool's dialect"),
    "lora convert": ("mova_engine.commands.lora_convert", "write adapters in another tool's dialect"),
    "lora merge": ("mova_engine.commands.lora_merge", "write a checkpoint with adapters merged into its weights"),
    "lora extract": ("mova_engine.commands.lora_extract", "write what a full fine-tune changed as adapters"),
    "lora combine": ("mova_engine.commands.lora_combine", "write several adapters with their strengths as one"),
    "quantise": ("mova_engine.commands.quantise", "write a model folder with quantised weights"),
    "enhance": ("mova_engine.commands.enhance_prompts", "rewrite prompts by a language model, and check the result"),
    "calibrate": ("mova_engine.commands.calibrate_steps", "measure what a step cache costs, for mova sample --cache"),
    "encode": ("mova_engine.commands.encode", "encode a folder of clips ahead of training"),
    "curate": (
        "mova_engine.commands.curate_films",
        "cut films into clips, measure them, keep those that meet filters",
    ),
    "curate report": (
        "mova_engine.commands.curate_report",
        "write a curation as a page: what is dropped and why",
    ),
    "curate explain": ("mova_engine.commands.curate_explain", "tell why a clip is kept or not, and all its numbers"),
    "curate refilter": ("mova_engine.commands.curate_refilter", "try other filters on clips that were measured"),
    "data check": ("mova_engine.commands.data_check", "name the clips that training cannot use, reasons counted"),
    "data index": ("mova_engine.commands.data_index", "write the index of tar shards, which --data then takes"),
    "data preview": ("mova_engine.commands.data_preview", "draw a sheet of what training sees of a folder of clips"),
    "verify": ("mova_engine.commands.verify_clips", "say who signed clips, and whether they were changed since"),
    "plan": ("mova_engine.plan.__main__", "predict memory, step time and traffic, and recommend how to run"),
    "plan curate": ("mova_engine.commands.plan_curate", "predict what curating many hours of film takes"),
    "doctor": ("mova_engine.doctor.__main__", "say what is wrong with this machine, and what to do about it"),
    "parity": ("mova_engine.parity.__main__", "compare this machine's results with recorded reference cases"),
    "bench": ("mova_engine.bench.__main__", "measure operators, blocks, steps, a whole card; checked first"),
    "bench traffic": ("mova_engine.commands.traffic", "what processes that share a clip send, by formula and counted"),
    "ops": ("mova_engine.ops.__main__", "show which implementation each operator would use on a device"),
    "describe": ("mova_engine.commands.describe", "print a model's parameters and FLOPs per component"),
    "eval": ("mova_engine.commands.evaluate", "measure a folder of clips: a table, a summary and a page"),
    "eval compare": ("mova_engine.commands.eval_compare", "compare two evaluations on the clips that both have"),
    "eval lag": ("mova_engine.commands.eval_lag", "measure the lag between voice and mouth in talking clips"),
    "eval scores": ("mova_engine.commands.eval_scores", "score clips by what the engine knows to measure"),
    "eval selftest": ("mova_engine.commands.eval_selftest", "compute published examples of the scores on this machine"),
    "eval transcribe": ("mova_engine.commands.eval_transcribe", "transcribe clips by a server or a local model"),
    "eval weights": (
        "mova_engine.commands.eval_weights",
        "check a folder of weights, and which scores it allows",
    ),
    "eval vote serve": ("mova_engine.commands.vote_serve", "serve a page on which raters compare clips, blindly"),
    "eval vote fit": ("mova_engine.commands.vote_fit", "place systems on a scale by their votes, with intervals"),
    "serve": (
        "mova_engine.commands.serve_videos",
        "serve a model: OpenAI's /v1/videos, a page, workers, a queue on disk",
    ),
    "nano clips": ("mova_engine.commands.nano_clips", "write the embedded data set of bouncing balls that click"),
    "nano sync": ("mova_engine.commands.nano_sync", "measure how well clicks and bounces of generated clips agree"),
    "nano sounds": ("mova_engine.commands.nano_sounds", "write the embedded data set of captioned notes"),
    "nano films": ("mova_engine.commands.nano_films", "write raw films of bouncing balls, to be curated"),
    "nano notes": ("mova_engine.commands.nano_notes", "measure pitch and onsets of generated sounds by their captions"),
    "completion": (
        "mova_engine.commands.completion",
        "print the script that completes commands in a shell",
    ),
}


def usage(first: str = "") -> str:
    """What `mova` alone prints; first: only the commands that begin with these words."""
    shown = {name: text for name, (_, text) in COMMANDS.items() if not first or f"{name} ".startswith(f"{first} ")}
    lines = [f"  {name:15} {text}" for name, text in shown.items()]
    command = f"{first} COMMAND" if first else "COMMAND"
    return "\n".join((f"usage: mova {command} [options]      (mova COMMAND --help tells the options)", "", *lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named command with the remaining arguments. MovaError with the nearest name for an unknown one."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"mova_engine {__version__}")
        return 0
    # The longest name first: `eval vote` is no clips for `eval`, but stands for the commands that begin so.
    unknown = words[0]
    for length in range(min(3, len(words)), 0, -1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            module, rest = importlib.import_module(COMMANDS[name][0]), words[length:]
            return module.main(rest, COMMANDS) if name == "completion" else module.main(rest)
        if any(known.startswith(f"{name} ") for known in COMMANDS):
            if len(words) == length or words[length].startswith("-") or words[length] == "help":
                print(usage(name))
                return 0
            unknown = " ".join(words[: length + 1])
            break
    raise MovaError(f"unknown command '{unknown}'.{suggest(unknown, COMMANDS)} Known: {', '.join(COMMANDS)}")


def run() -> None:
    """Entry point of the console script."""
    load_devices_when_asked()
    run_cli(main)


if __name__ == "__main__":
    run()
