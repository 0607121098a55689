"""The console script `mova`: one name for the engine's commands. Also as modules: `python -m mova_engine.train`."""

import importlib
import sys

from mova_engine import __version__, load_devices_when_asked
from mova_engine.errors import MovaError, run_cli, suggest

# Command -> (module with `main(argv) -> int`, what it does). Imported only when asked for, so that help is instant.
COMMANDS = {
    "train": ("mova_engine.train.__main__", "train or fine-tune a model by a recipe"),
    "sample": ("mova_engine.inference.__main__", "generate clips with sound from a caption and a first frame"),
    "merge": ("mova_engine.adapters.merge", "write a checkpoint with a file of adapters merged into its weights"),
    "cache": ("mova_engine.data.latent_cache", "encode a folder of clips ahead of training"),
    "bounce": ("mova_engine.data.synthetic.bounce", "write the embedded dataset of bouncing balls that click"),
    "bounce-sync": ("mova_engine.scores.bounce_sync", "measure how well clicks and bounces of generated clips agree"),
    "align": ("mova_engine.scores.speech_lag", "measure the lag between voice and mouth in talking clips"),
    "parity": ("mova_engine.parity.__main__", "compare this machine's results with recorded reference cases"),
    "doctor": ("mova_engine.doctor.__main__", "say what is wrong with this machine, and what to do about it"),
    "describe": ("mova_engine.describe", "print a model's parameters and FLOPs per component"),
    "plan": ("mova_engine.plan.__main__", "predict memory, step time and traffic, and recommend how to run"),
    "bench": ("mova_engine.bench.__main__", "measure operators, blocks or a training step, checked first; tables"),
    "parallel": ("mova_engine.distributed.__main__", "what processes that share a clip send, by formula and counted"),
    "ops": ("mova_engine.ops.__main__", "show which implementation each operator would use on a device"),
}


def usage() -> str:
    """What `mova` alone prints."""
    lines = [f"  {name:12} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(("usage: mova COMMAND [options]      (mova COMMAND --help tells the options)", "", *lines))


def main(argv: list[str] | None = None) -> int:
    """Run the named command with the remaining arguments. MovaError with the nearest name for an unknown one."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"mova_engine {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise MovaError(f"unknown command '{name}'.{suggest(name, COMMANDS)} Known: {', '.join(COMMANDS)}")
    return importlib.import_module(COMMANDS[name][0]).main(rest)


def run() -> None:
    """Entry point of the console script."""
    load_devices_when_asked()
    run_cli(main)


if __name__ == "__main__":
    run()
