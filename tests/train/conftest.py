"""A folder of real bouncing-ball clips, and small nano runs on it."""

import io
from pathlib import Path

import one_layer
import pytest
from rich.console import Console

from mova_engine.config.model import PRESETS
from mova_engine.config.recipes import load_config
from mova_engine.config.train import TrainConfig
from mova_engine.data.synthetic.bounce import generate
from mova_engine.train import trainer
from mova_engine.train.metrics import read_metrics
from mova_engine.train.trainer import Trainer


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Twelve clips with their metadata; runs share the cache beside them."""
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, 12, seed=3)
    return folder


@pytest.fixture(autouse=True, scope="module")
def _one_layer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "nano", one_layer.nano())
        yield


@pytest.fixture
def small(clips, tmp_path, backend):
    """Configurations of runs of a few quick steps: `small(steps=4, optim={"lr": 1e-3})`."""

    def make(out: str = "run", **overrides) -> TrainConfig:
        loader = {"batch": 2, "num_fit_clips": 4, **overrides.pop("loader", {})}
        optim = {"warmup": 2, "ema": 0.9, **overrides.pop("optim", {})}
        log = {"every": 1, "tensorboard": False, **overrides.pop("log", {})}
        common = {"steps": 4, "data": clips, "out": tmp_path / out, "device": backend.name}
        settings = {**common, "validation": {"every": 0}, **overrides}
        return load_config("nano", loader=loader, optim=optim, log=log, **settings)

    return make


class Ran:
    """A finished run: its exit status, what it said, and its losses by step."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.text = config, io.StringIO()
        self.trainer = Trainer(config, Console(file=self.text, highlight=False, markup=False, soft_wrap=True))
        self.status = self.trainer.run()

    @property
    def said(self) -> str:
        return self.text.getvalue()

    @property
    def rows(self) -> list[dict]:
        return read_metrics(self.config.folder / "metrics.jsonl")

    @property
    def losses(self) -> list[tuple]:
        names = ("step", "loss", "loss/video", "loss/audio", "grad_norm")
        return [tuple(row.get(name) for name in names) for row in self.rows if "loss" in row]


@pytest.fixture
def ran(monkeypatch):
    """Train: `ran(config)` returns a `Ran`. The losses are not drawn, which takes as long as such a run."""
    monkeypatch.setattr(trainer, "loss_curve", lambda metrics: b"a picture")
    return Ran


@pytest.fixture
def ran_and_drawn():
    """Train, and draw the losses."""
    return Ran
