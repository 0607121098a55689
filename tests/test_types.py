"""What a type checker tells a user of the package. `make types` checks the engine itself and the example."""

import json
import subprocess
import sys

import pytest

from source_tree import ROOT

pytest.importorskip("pyright", reason="the type checker comes with the development tools")

RIGHT = """
from mova_engine import GeneratedClip, MemoryConfig, Pipeline, Trainer, TrainConfig, bind, get_backend, load_config

config: TrainConfig = load_config("nano", steps=10)
status: int = Trainer(config).run()
pipeline = Pipeline.from_pretrained("runs/nano", device="cpu", memory=MemoryConfig(expert="host"))
clip: GeneratedClip = pipeline("a red ball", image="ball.png", seed=1)
clips: list[GeneratedClip] = pipeline(["a red ball", "a blue ball"], steps=4)
height: int = clips[0].frames.shape[1]
device: str = bind(get_backend("cpu")).device
"""
# Each line is one mistake.
WRONG = """
from mova_engine import MemoryConfig, Pipeline, Trainer, load_config
from mova_engine import Pipelines
MemoryConfig(expert="disk")
Trainer("nano")
pipeline = Pipeline.from_pretrained("runs/nano")
pipeline("a red ball").saves("ball.mp4")
pipeline(7)
load_config("nano").optim.learning_rate
"""


def checked(folder, source: str) -> list[tuple[int, str]]:
    """(line, rule) of each error that strict checking finds in a user's program."""
    program, settings = folder / "program.py", folder / "pyrightconfig.json"
    program.write_text(source.strip() + "\n")
    # A checker does not follow the finder of a development install; a wheel has the same files in site-packages.
    places = {"include": ["program.py"], "extraPaths": [str(ROOT)]}
    settings.write_text(json.dumps({"typeCheckingMode": "strict", **places}))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(folder)]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = json.loads(child.stdout)["generalDiagnostics"]
    return [(each["range"]["start"]["line"] + 1, each.get("rule", "")) for each in found]


def test_a_users_program_is_checked_strictly_and_his_mistakes_are_seen(tmp_path):
    both = RIGHT.strip() + "\n" + WRONG
    first = len(RIGHT.strip().splitlines()) + 4
    errors = checked(tmp_path, both)
    assert {line for line, _ in errors} == {*range(first - 1, first + 2), *range(first + 3, first + 6)}, errors
