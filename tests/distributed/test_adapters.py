"""Adapters trained by processes that share clips, weights or neither: one process's run, and its checkpoints."""

from pathlib import Path

import pytest
import torch
from distributed.runs import run_shared
from safetensors.torch import load_file

from mova_engine.checkpoints.locate import ADAPTERS
from mova_engine.train.metrics import read_metrics

MESHES = {
    "clips": {"context_parallel": 2},
    "clips and weights": {"context_parallel": 2, "shard": True},
    "weights": {"shard": True},
}


@pytest.fixture(scope="module")
def base(clips, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base")
    assert run_shared(clips=str(clips), out=str(out), steps=3, batch=4, optim={"ema": 0, "warmup": 0})[0] == 0
    return out / "checkpoints" / "step-000003"


def settings(clips: Path, base: Path, out: Path, **more) -> dict:
    adapted = {"lora": {"rank": 4}, "model": {"checkpoint": base}, "optim": {"lr": 1e-3}}
    return {"clips": str(clips), "out": str(out), "steps": 4, "every": 2, **adapted, **more}


@pytest.fixture(scope="module")
def alone(clips, base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run_shared(**settings(clips, base, out, batch=4))[0] == 0
    return out


@pytest.fixture(scope="module")
def pair(worlds):
    return worlds(2)


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl")]


@pytest.mark.parametrize("mesh", MESHES)
def test_two_processes_train_adapters_as_one_does(clips, base, alone, pair, tmp_path, mesh):
    # Two that do not share clips have two each.
    batch = 2 if mesh == "weights" else 4
    given = settings(clips, base, tmp_path / "run", batch=batch, parallel=MESHES[mesh])
    found = pair.run("run_shared", **given)
    assert [status for status, _ in found] == [0, 0], found
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)
    ours, theirs = (out / "checkpoints" / "step-000004" for out in (tmp_path / "run", alone))
    assert {p.relative_to(ours) for p in ours.rglob("*")} == {p.relative_to(theirs) for p in theirs.rglob("*")}
    for name in (ADAPTERS, "training/master.safetensors", "training/ema.safetensors"):
        one, other = load_file(ours / name), load_file(theirs / name)
        assert one.keys() == other.keys()
        assert max(float((x - other[key]).abs().max()) for key, x in one.items()) < 1e-4


def test_in_bfloat16_shared_frozen_weights_are_bfloat16_and_adapters_float32(clips, base, pair, tmp_path):
    # A CPU without matrix units takes long for bfloat16. The second loss has what the first step taught.
    mixed = {"batch": 1, "steps": 2, "dtype": "bfloat16", "memory": {"checkpointing": "selective"}}
    given = settings(clips, base, tmp_path / "run", parallel=MESHES["clips and weights"], **mixed)
    found = pair.run("run_shared", **given)
    assert [status for status, _ in found] == [0, 0], found
    assert run_shared(**settings(clips, base, tmp_path / "alone", **mixed))[0] == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=0.01)
    folder = tmp_path / "run" / "checkpoints" / "step-000002"
    assert {x.dtype for x in load_file(folder / ADAPTERS).values()} == {torch.bfloat16}
    assert {x.dtype for x in load_file(folder / "training" / "master.safetensors").values()} == {torch.float32}


def test_one_process_goes_on_from_what_two_have_saved_bit_for_bit_loaded(clips, base, alone, pair, tmp_path):
    given = settings(clips, base, tmp_path / "run", batch=4, parallel=MESHES["clips and weights"])
    pair.run("run_shared", **{**given, "steps": 2})
    middle = tmp_path / "run" / "checkpoints" / "step-000002"
    status, _ = run_shared(**settings(clips, base, tmp_path / "one", batch=4, resume=str(middle)))
    assert status == 0 and losses(tmp_path / "one") == pytest.approx(losses(alone)[2:], rel=1e-5)
    saved = load_file(middle / ADAPTERS)
    # The file's alpha lies in its metadata, wherever it was written.
    average = load_file(middle / "training" / "ema.safetensors")
    assert all(torch.equal(x, average[name]) for name, x in saved.items())


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_processes_start_from_the_adapters_of_a_file(clips, base, alone, pair, tmp_path, mesh):
    still = {"lora": {"rank": 4, "init": alone}, "optim": {"lr": 0.0, "ema": 0}, "parallel": MESHES[mesh]}
    found = pair.run("run_shared", **settings(clips, base, tmp_path / "run", batch=2, **still))
    assert [status for status, _ in found] == [0, 0], found
    ours, theirs = (load_file(out / "checkpoints" / "step-000004" / ADAPTERS) for out in (tmp_path / "run", alone))
    assert ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())
