"""Names mean one thing: no class and no file name is used twice, and a step's way to a matrix product is short."""

import ast
import sys
import traceback
from collections import defaultdict
from pathlib import Path

import torch

from source_tree import ROOT, python_files, relative, tree

# Files of which there is one in every folder of their kind, under the same name on purpose.
FAMILIES = {"__init__.py", "__main__.py", "triton.py", "ops.py", "dry_run.py"}
WAY = (
    "train/__main__.py",
    "train/trainer.py",
    "train/step.py",
    "models/mova.py",
    "models/layers.py",
    "ops/fused_linear.py",
    "ops/half_products.py",
)


def repeated(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: found for name, found in places.items() if len(found) > 1}


def product_files() -> list[Path]:
    return [path for part in ("mova_engine", "kernels") for path in python_files(part)]


def test_no_class_has_two_meanings():
    places = defaultdict(list)
    for path in product_files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{relative(path)}:{node.lineno}")
    assert len(places) > 200
    assert not repeated(places)


def test_no_file_has_two_meanings():
    places = defaultdict(list)
    for path in product_files():
        if path.name not in FAMILIES:
            places[path.name].append(relative(path))
    assert len(places) > 200
    assert not repeated(places)


def test_a_training_step_reaches_a_matrix_product_through_seven_files(tmp_path, monkeypatch):
    """The frames that are open while a block's first product is computed, from the command on."""
    from mova_engine.train import __main__ as command

    ways, linear = [], torch.nn.functional.linear

    def recorded(*args, **kwargs):
        frames = [Path(frame.filename) for frame in traceback.extract_stack()]
        files = [str(path.relative_to(ROOT / "mova_engine")) for path in frames if "mova_engine" in path.parts]
        if "ops/fused_linear.py" in files:
            ways.append(tuple(dict.fromkeys(files)))
        return linear(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "linear", recorded)
    options = "--device cpu --steps 1 --loader.synthetic-clips 2 --loader.batch 2 --loader.num-fit-clips 2"
    options += " --validation.every 0 --optim.ema 0 --log.no-tensorboard"
    monkeypatch.setattr(sys, "argv", ["train"])
    assert command.main([*options.split(), "--out", str(tmp_path / "run")]) == 0
    blocks = {way for way in ways if "models/bridge.py" not in way}
    assert blocks == {WAY}
    assert {len(way) for way in ways} == {len(WAY), len(WAY) + 1}, "a bridge layer's products take its own file more"
