"""Runs whose weights are shared: checkpoints that any number of processes goes on from, faults, encoding in rounds."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel.runs import configured, run_shared
from parallel.world import World, free_port
from safetensors.torch import load_file

from mova_engine.backend import get_backend
from mova_engine.config import get_preset
from mova_engine.data.bounce import generate
from mova_engine.data.cache import LatentCache
from mova_engine.data.dataset import open_dataset
from mova_engine.data.loader import build_loader
from mova_engine.errors import MovaError
from mova_engine.models.checkpoint import load_mova
from mova_engine.models.codecs import build_audio_codec, build_text_encoder, build_video_codec
from mova_engine.ops import bind
from mova_engine.train.checkpoints import checkpoints_of
from mova_engine.train.metrics import read_metrics

SHARED = {"parallel": {"shard": True, "context_parallel": 2}}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, 8, seed=3)
    return folder


@pytest.fixture(scope="module")
def pair():
    """Two processes for runs, each of which joins and leaves a process group of its own."""
    world = World(2)
    yield world
    world.close()


@pytest.fixture(scope="module")
def shared(clips, pair, tmp_path_factory) -> Path:
    """A run of four steps by two processes that share clips and weights, with checkpoints after two and four."""
    out = tmp_path_factory.mktemp("runs") / "shared"
    assert [status for status, _ in run(pair, clips, out)] == [0, 0]
    return out


def run(world: World, clips: Path, out: Path, steps: int = 4, **settings) -> list:
    settings = {**SHARED, "every": 2, "batch": 4, "port": free_port(), **settings}
    return world.run("run_shared", clips=str(clips), out=str(out), steps=steps, **settings)


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl")]


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint but the generators' states."""
    files = [file for file in sorted(checkpoint.rglob("*.safetensors")) if file.stem != "rng"]
    return {f"{file.relative_to(checkpoint)}:{name}": x for file in files for name, x in load_file(file).items()}


def test_a_shared_run_is_one_processs_and_so_is_its_checkpoint(clips, shared, tmp_path):
    status, _ = run_shared(clips=str(clips), out=str(tmp_path / "alone"), steps=4, batch=4, every=2)
    assert status == 0 and losses(shared) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    ours, theirs = (folder / "checkpoints" / "step-000004" for folder in (shared, tmp_path / "alone"))
    assert {p.relative_to(ours) for p in ours.rglob("*")} == {p.relative_to(theirs) for p in theirs.rglob("*")}
    found, expected = tensors(ours), tensors(theirs)
    assert found.keys() == expected.keys()
    assert all(x.shape == expected[name].shape and x.dtype == expected[name].dtype for name, x in found.items())
    # AdamW magnifies what rounding leaves of gradients that are all but zero.
    worst = max(float((x - expected[name]).abs().max()) for name, x in found.items())
    assert worst < 1e-4
    model = load_mova(ours, bind(get_backend("cpu")), device="cpu")
    assert torch.equal(model.audio_dit.head.head.weight, found["training/ema.safetensors:audio_dit.head.head.weight"])


def test_any_number_of_processes_goes_on_from_a_checkpoint(clips, pair, shared, tmp_path):
    """Two to one and one to two; losses are those of the run that went through."""
    middle = shared / "checkpoints" / "step-000002"
    status, _ = run_shared(clips=str(clips), out=str(tmp_path / "one"), steps=4, batch=4, every=3, resume=str(middle))
    assert status == 0 and losses(tmp_path / "one") == pytest.approx(losses(shared)[2:], rel=1e-5)
    back = tmp_path / "one" / "checkpoints" / "step-000003"
    assert [status for status, _ in run(pair, clips, tmp_path / "two", resume=str(back))] == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(shared)[3:], rel=1e-5)


def test_a_run_that_goes_on_is_the_uninterrupted_one_bit_for_bit(clips, pair, shared, tmp_path):
    out = tmp_path / "again"
    (out / "checkpoints").mkdir(parents=True)
    shutil.copytree(shared / "checkpoints" / "step-000002", out / "checkpoints" / "step-000002")
    run(pair, clips, out)
    found, expected = (tensors(folder / "checkpoints" / "step-000004") for folder in (out, shared))
    assert found.keys() == expected.keys() and all(torch.equal(x, expected[name]) for name, x in found.items())


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_loading_and_saving_changes_no_bit_on_any_mesh(clips, pair, shared, tmp_path, world):
    """Also where there are more processes than a weight has rows, and where two copies are shared by two each."""
    source = shared / "checkpoints" / "step-000004"
    processes = pair if world == 2 else World(world)
    settings = {"parallel": {"shard": True, "replicate": 2 if world == 4 else 1}, "precision": "fp32"}
    try:
        places = {"source": str(source), "target": str(tmp_path), "clips": str(clips), "port": free_port()}
        processes.run("resaved", **places, steps=9, batch=4, **settings)
    finally:
        if processes is not pair:
            processes.close()
    found, expected = tensors(tmp_path / "checkpoints" / "step-000004"), tensors(source)
    assert found.keys() == expected.keys() and all(torch.equal(x, expected[name]) for name, x in found.items())


def test_a_full_disk_of_one_process_stops_all_and_leaves_no_half_checkpoint(clips, pair, tmp_path):
    """One of the two says so; what was complete stays."""
    out = tmp_path / "run"
    run(pair, clips, out, steps=2)
    said = [status for status, _ in run(pair, clips, out, steps=4, fault="full disk")]
    assert sum("No space left on device" in str(each) and "rank 1" in str(each) for each in said) == 1, said
    assert [step for step, _ in checkpoints_of(out)] == [2]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000002"]


def test_a_process_whose_loss_is_not_finite_is_named(clips, pair, tmp_path):
    said = run(pair, clips, tmp_path / "run", fault="not finite", optim={"max_nonfinite": 2})
    (status, text), (other, _) = said
    assert "warning: step 1 skipped: its loss or gradient is not finite (rank 1; clips train_" in text
    assert "2 steps in a row were not finite" in status and other == "SystemExit: 2"


@pytest.mark.parametrize(
    ("case", "told"),
    [
        pytest.param(
            "silent",
            "rank 1 on .* died or was stopped: no sign of life for . s, the last at 'step 1: reading clips'",
            marks=pytest.mark.slow,
        ),
        ("hangs", "rank 1 on .* hangs: at 'step 1: reading clips' for . s, while the others wait"),
        ("failed", "rank 1 on .* failed at 'step 1: reading clips': the disk is full"),
        ("lost", "rank 1 on .* died or was stopped"),
        ("terminated", "rank 1 on .* died or was stopped"),
    ],
)
def test_a_process_that_fails_is_named_and_all_end(worlds, case, told):
    (said, status), (own, _) = worlds(2).run("watched", case=case)
    if case == "failed":
        # It speaks for itself.
        assert own == "rank 1: the disk is full" and status == 2
    else:
        assert re.match(told, said), said
    assert case in ("lost", "terminated") or status == 2


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_that_share_clips_encode_each_once_in_rounds(worlds, clips, tmp_path, world):
    """Each rank's cache is its own, so that it helps nobody else."""
    found = worlds(world).run("encoded_in_rounds", clips=str(clips), cache=str(tmp_path), batches=8)
    names, sums, _ = found[0]
    assert len(set(names)) == 8 and all(each[:2] == (names, sums) for each in found)
    assert [encoded for *_, encoded in found] == [8 // world] * world
    sizes = get_preset("nano")
    codecs = build_video_codec("dct"), build_audio_codec("mdct")
    text = build_text_encoder("bytes", tokens=16, dim=sizes.video.text_dim)
    alone = iter(
        build_loader(open_dataset(clips, LatentCache(tmp_path / "alone", sizes.clip, *codecs, text)), 1, seed=2)
    )
    for index, name in enumerate(names):
        batch = next(alone)
        assert batch["id"] == [name]
        assert float(batch["video_latents"].double().sum()) == sums[f"{index}:video_latents"]


def test_no_clip_is_lost_or_repeated_when_the_number_of_processes_changes(clips, tmp_path):
    sizes = get_preset("nano")
    codecs = build_video_codec("dct"), build_audio_codec("mdct")
    text = build_text_encoder("bytes", tokens=16, dim=sizes.video.text_dim)
    data = open_dataset(clips, LatentCache(tmp_path / "cache", sizes.clip, *codecs, text))
    seen, position = [], None
    for world, steps in ((2, 1), (4, 1), (1, 2)):
        loaders = [build_loader(data, 1, seed=1, rank=rank, world=world) for rank in range(world)]
        for loader in loaders:
            if position is not None:
                loader.load_state_dict(position)
        iterators = [iter(loader) for loader in loaders]
        for _ in range(steps):
            seen += [name for iterator in iterators for name in next(iterator)["id"]]
        position = loaders[0].state_dict()
    assert len(seen) == len(set(seen)) == 8 and loaders[0].epoch == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"parallel": {"replicate": 2}}, "parallel.replicate concerns sharded weights"),
        ({"parallel": {"offload": True}}, "parallel.offload concerns sharded weights"),
    ],
)
def test_settings_that_need_sharding_say_so(clips, settings, reason):
    with pytest.raises(MovaError, match=reason):
        configured(str(clips), "run", 1, 1, **settings)
    status, _ = run_shared(clips=str(clips), out="run", steps=1, batch=1, parallel={"shard": True})
    assert "parallel.shard divides the weights among processes, but this is one" in status


@pytest.mark.slow
@pytest.mark.parametrize("during", ["step", "checkpoint"])
def test_processes_killed_at_random_times_cost_nothing(during, repo_root):
    script = repo_root / "tests" / "parallel" / "kill.py"
    command = [sys.executable, str(script), "--times", "3", "--processes", "4", "--during", during]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0 and "bit for bit" in done.stdout, done.stdout + done.stderr
    assert "NOT NAMED" not in done.stdout, done.stdout
