"""No command replaces or removes what is the user's: each is run where files of theirs lie under the names it writes.

The names are found by running the command in an empty folder, so that a new output cannot be forgotten here.
"""

import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from mova_engine.adapters.lora import add_lora, save_lora
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import save_mova
from mova_engine.cli import main
from mova_engine.codecs import build_audio_codec, build_video_codec
from mova_engine.config.model import get_preset
from mova_engine.data.synthetic.bounce import generate
from mova_engine.errors import MovaError
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
from mova_engine.train import trainer

TRAIN = ["--device=cpu", "--steps=1", "--loader.batch=1", "--loader.num-fit-clips=2", "--checkpoint.every=1"]
TRAIN += ["--validation.every", "0", "--optim.ema", "0", "--log.every", "1"]


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """The file of the losses is written by its usual way, but nothing is drawn: that takes as long as a short run."""
    monkeypatch.setattr(trainer, "loss_curve", lambda metrics: b"a picture")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Clips, a model, adapters for it, a folder of results."""
    folder = tmp_path_factory.mktemp("inputs")
    generate(folder / "clips", 2)
    model = Mova(get_preset("nano"), bind(get_backend("cpu")))
    model.init_weights(torch.Generator().manual_seed(0))
    codecs = {"video_codec": build_video_codec("dct"), "audio_codec": build_audio_codec("mdct")}
    save_mova(model, folder / "base", **codecs)
    add_lora(model, ["video_dit.blocks.0.self_attn.q"], 1, 1.0)
    save_lora(model, folder / "adapters.safetensors")
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    shutil.copy(next(results.glob("chain-float32.json")), folder / "result.json")
    return folder


# Arguments, with {in} for the inputs and {out} for the folder that is looked at.
MERGE = ["lora", "merge", "--checkpoint", "{in}/base", "--lora", "{in}/adapters.safetensors"]
COMMANDS = {
    "train": ["train", "--data", "{in}/clips", "--out", "{out}", "--loader.cache", "{in}/cache", *TRAIN],
    "generate": ["train", "--out", "{out}", "--loader.cache", "{in}/generated", "--loader.synthetic-clips=2", *TRAIN],
    "encode": ["encode", "--data", "{in}/clips", "--model", "nano", "--out", "{out}"],
    "nano clips": ["nano", "clips", "{out}", "--clips", "2"],
    "lora merge": [*MERGE, "--out", "{out}"],
    "sample": ["sample", "--checkpoint", "{in}/base", "--prompt", "a ball", "--out", "{out}", "--steps", "1"],
    "nano sync": ["nano", "sync", "{in}/clips", "--json", "{out}/sync.json"],
    "bench": ["bench", "chain", "--rows", "64", "--width", "128", "--json", "{out}/chain.json"],
    "report": ["bench", "report", "{in}/result.json", "--out", "{out}/page.md"],
}  # fmt: skip
COMMANDS["sample --overwrite"] = [*COMMANDS["sample"], "--overwrite"]
# Of those that take seconds, one file of each depth below a folder stands for the others.
FEW = {"train", "generate", "encode"}
SLOW = {"generate", "bench"}


def run(name: str, inputs: Path, out: Path) -> str | None:
    """Returns why the command refused; None where it did its work."""
    command = [word.replace("{in}", str(inputs)).replace("{out}", str(out)) for word in COMMANDS[name]]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            assert main(command) == 0
        except MovaError as error:
            return str(error)
    return None


def cases(names) -> list:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", cases(COMMANDS))
def test_what_lies_under_a_name_that_a_command_writes_survives(name, inputs, tmp_path):
    first = tmp_path / "first"
    assert run(name, inputs, first) is None
    names = sorted(path.relative_to(first) for path in first.rglob("*"))
    assert names
    if name in FEW:
        names = list({(each.parts[0], len(each.parts)): each for each in names}.values())
    theirs = b"years of work\n"
    for number, each in enumerate(names):
        out = tmp_path / str(number)
        (out / each).parent.mkdir(parents=True)
        (out / each).write_bytes(theirs)
        refused = run(name, inputs, out)
        found = files_of(out)
        if found.get(out / each) == theirs:
            continue
        # In a run's checkpoints and a cache it may get another name beside it.
        kept = [path for path, data in found.items() if data == theirs]
        assert kept and ".kept-" in str(kept[0]), f"{each} is gone ({refused})"


@pytest.mark.parametrize("name", cases(["sample --overwrite", "nano sync", "bench", "report", "train"]))
def test_what_the_command_wrote_and_the_user_then_changed_survives(name, inputs, tmp_path):
    """While what nobody touched makes room."""
    assert run(name, inputs, tmp_path) is None
    assert run(name, inputs, tmp_path) is None
    top = [path for path in tmp_path.iterdir() if path.is_file() and not path.name.startswith(".mova")]
    for path in top:
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        refused = run(name, inputs, tmp_path)
        assert path.read_bytes() == before + b" ", f"{path.name}: {refused}"
        path.write_bytes(before)
