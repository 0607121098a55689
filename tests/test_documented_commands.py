"""Every command that README, docs, recipes and example files show is understood, and fits what it is shown for."""

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from mova_engine import cli
from mova_engine.backend import get_backend
from mova_engine.bench.card.slice_runner import asks_for_suite, read_options
from mova_engine.config.command import Command
from mova_engine.config.mesh import choose_mesh
from mova_engine.config.model import PRESETS, get_preset
from mova_engine.config.recipes import TRAIN
from mova_engine.config.sample import SAMPLE
from mova_engine.distributed.processes import Launch
from mova_engine.errors import MovaError
from mova_engine.inference.lossy_attention import LossyAttention
from mova_engine.inference.step_plan import StepPlan
from source_tree import ROOT

RECIPES = sorted((ROOT / "mova_engine" / "config" / "recipes").glob("*.yaml"))
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "tests" / "ascend" / "emulator" / "README.md",
    *RECIPES,
    *sorted((ROOT / "mova_engine").rglob("*.py")),
    *sorted((ROOT / "examples").glob("*.py")),
]
_LAUNCHER = r"\S*python3?|torchrun(?: --\S+(?: [^-\s]\S*)?)*"
_EMULATED = r"(?: \S+emulate\.py(?: --list)? python)?"
_COMMAND = re.compile(
    rf"(?:mova(?= [a-z])|(?P<launcher>{_LAUNCHER}){_EMULATED} -m mova_engine(?:\.(?P<module>[\w.]+))?)"
    r"(?P<rest>(?= |$).*)$"
)


# What commands say of an option without its value, and of one that must be given.
_LACKING = re.compile("requires an argument|^missing: |one of the two")


class Shown:
    """A command as a page shows it."""

    def __init__(self, page: Path, match: re.Match, mentioned: bool) -> None:
        self.mentioned = mentioned
        self.text, modules = match[0], {module: name for name, (module, _) in cli.COMMANDS.items()}
        self.launcher = match["launcher"] or ""
        words = shlex.split(match["rest"].split(" > ")[0])
        self.name = modules.get(f"mova_engine.{match['module']}.__main__")
        if match["module"] is None:
            length = next((n for n in (3, 2) if " ".join(words[:n]) in cli.COMMANDS), 1)
            self.name, words = " ".join(words[:length]), words[length:]
        self.words = [word.replace("DEVICE", "cpu") for word in words]
        counts = dict(re.findall(r"--(nnodes|nproc-per-node) (\d+)", self.launcher))
        self.world = int(counts.get("nnodes", 1)) * int(counts.get("nproc-per-node", 1))
        self.id = f"{page.name}: {' '.join(self.text.split())[:100]}"


def _lines(page: Path) -> list[tuple[str, bool]]:
    """Pairs of what may be a command and whether it is mentioned in a sentence, where its values may be missing."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        text = "\n".join(line.lstrip("#") for line in text.splitlines() if line.startswith("#"))
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^ {2,}(?:\$ )?(\S.*)$", text, re.M)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"\n(?=\S)", " ", text))
    # In code a span in a sentence may be a part of a command.
    return [(line, False) for line in blocks] + [(span, True) for span in spans if page.suffix != ".py"]


def _commands(page: Path) -> list[Shown]:
    found = []
    for line, mentioned in _lines(page):
        line = re.split(r"\s+#\s|\s{4,}(?=\S)", line.strip())[0]
        match = _COMMAND.match(line)
        # `a|b`, `[...]` and `...` are a form, not a command.
        if match and not re.search(r"[|\[\]]|\.\.\.|\b(NAME|RECIPE|COMMAND|SUITE|MODEL|N)\b", match["rest"]):
            found.append(Shown(page, match, mentioned))
    return found


COMMANDS = {shown.id: shown for page in PAGES for shown in _commands(page)}


class Parsed(Exception):
    """A command's options were understood."""


@pytest.fixture
def only_parsed(monkeypatch):
    """Commands stop once their options are understood."""
    parse = Command.parse

    def stop(self, argv):
        if parse(self, argv) is not None:
            raise Parsed

    monkeypatch.setattr(Command, "parse", stop)


def _preset(folder: str) -> str:
    return next((name for name in sorted(PRESETS) if name in folder.lower()), "mova-360p")


def _train(shown: Shown) -> None:
    """The options parse, and torchrun's processes make the mesh that is asked for."""
    config, rehearsal = TRAIN.parse_both(shown.words)
    if config is None:
        return  # only shown
    world = rehearsal.world_size if rehearsal.dry_run else shown.world
    preset = _preset(str(config.model.checkpoint)) if config.model.checkpoint else config.model.preset
    choose_mesh(
        world,
        get_preset(preset).video.num_heads,
        context_parallel=config.parallel.context_parallel,
        ulysses=config.parallel.ulysses,
        dp_replicate=config.parallel.replicate,
    )
    assert world > 1 or not config.parallel.shard


def _sample(shown: Shown, monkeypatch) -> None:
    """Everything that is checked before a model is loaded, on a model of the size that the folder's name tells."""
    main = importlib.import_module("mova_engine.inference.sampling_job")
    monkeypatch.setattr(main, "open_model", lambda folder, *_, **__: (folder, get_preset(_preset(str(folder)))))
    monkeypatch.setattr(main, "require_adapter", lambda path: None)
    monkeypatch.setattr(main, "get_backend", lambda name: get_backend("cpu"))
    # Nor is the device for which an attention is shown.
    monkeypatch.setattr(main, "check_attention", lambda name, _: LossyAttention(name))
    # The files that are given are not there.
    monkeypatch.setattr(main, "fitted_shape", lambda given, shape, stated: (shape, None))
    monkeypatch.setattr(main, "_extension", lambda *_: (None, None))
    monkeypatch.setattr(
        "mova_engine.inference.command_settings._planned",
        lambda _, __, ___, ____, settings, *_____: StepPlan((), settings.count, 1, 1, 0, 0),
    )
    monkeypatch.setattr(main, "_work", lambda config, *_: [None] * (config.count or (96 if config.prompts else 1)))
    main.read_job(SAMPLE.parse(shown.words), Launch(rank=0, world=shown.world))


def test_commands_are_found():
    """The list that the next tests walk is not empty for want of a match."""
    assert len(COMMANDS) > 60
    assert cli.COMMANDS.keys() == {shown.name for shown in COMMANDS.values()}


@pytest.mark.parametrize("shown", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_shown_command_is_understood(shown, only_parsed, monkeypatch, tmp_path):
    assert shown.name in cli.COMMANDS, f"{shown.text}: no such command"
    if not shown.words:
        return  # the name alone, in a sentence
    if {"--from-musubi", "--from-aitk"} & {*shown.words}:
        shutil.copytree(ROOT / "tests" / "data" / "from_tools", tmp_path, dirs_exist_ok=True)
        (tmp_path / "clips").mkdir()
        (tmp_path / "clips" / "metadata.jsonl").write_text("{}\n")
    if "--manifest" in shown.words[:-1]:
        manifest = tmp_path / shown.words[shown.words.index("--manifest") + 1]
        manifest.parent.mkdir(parents=True)
        settings = {"checkpoint": "MOVA-360p", "prompt": "rain on a roof"}
        manifest.write_text(json.dumps({"mova_manifest": 1, "settings": settings}))
    try:
        if shown.name == "train":
            monkeypatch.undo()
            monkeypatch.chdir(tmp_path)
            _train(shown)
        elif shown.name == "sample":
            monkeypatch.undo()
            monkeypatch.chdir(tmp_path)
            _sample(shown, monkeypatch)
        elif asks_for_suite(shown.words):
            read_options(shown.words)
        else:
            with pytest.raises(Parsed):
                cli.main([*shown.name.split(), *shown.words])
    except MovaError as error:
        if not (shown.mentioned and _LACKING.search(str(error))):
            raise


@pytest.mark.parametrize("shown", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_shown_command_does_not_take_the_place_of_make_nano(shown):
    """`make nano` leaves its run in runs/nano: a shown command that trains nano otherwise names its own folder."""
    named = {"--print-config", "--dry-run", "--from-musubi", "--from-aitk"}
    if shown.name == "train" and shown.words and not named & {*shown.words}:
        config = TRAIN.parse(shown.words)
        assert config.name != "nano" or "--out" in shown.words, f"{shown.text}: give it an --out"


def _options(recipe: Path) -> list[tuple[str, ...]]:
    """Options that a recipe's comments advise: runs of `--name value`."""
    comments = [line.lstrip("# ") for line in recipe.read_text().splitlines() if line.lstrip().startswith("#")]
    text = " ".join(line for line in comments if not _COMMAND.match(line))
    runs = re.findall(r"(?<!\S)`?(--[\w.-]+(?: (?!--)[\w./-]+)?(?: --[\w.-]+(?: (?!--)[\w./-]+)?)*)", text)
    return [tuple(word.rstrip(".,;:`") for word in run.split()) for run in runs]


ADVISED = [(recipe.stem, words) for recipe in RECIPES for words in _options(recipe)]


@pytest.mark.parametrize("recipe, words", ADVISED, ids=lambda x: x if isinstance(x, str) else " ".join(x))
def test_options_that_a_recipe_advises_are_understood(recipe, words):
    """By the trainer with this recipe, or by the sampler."""
    sampler = SAMPLE.options()
    if not {word for word in words if word.startswith("--")} <= sampler:
        TRAIN.parse(["--recipe", recipe, *words])
