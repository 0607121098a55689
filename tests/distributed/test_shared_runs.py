"""Runs whose weights are shared: checkpoints that any number of processes goes on from, faults, encoding in rounds."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed.runs import configured, run_shared
from distributed.saved import losses, tensors
from distributed.world import World

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_mova
from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec
from mova_engine.config.model import get_preset
from mova_engine.data.dataset import open_dataset
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.loader import build_loader
from mova_engine.errors import MovaError
from mova_engine.ops import bind
from mova_engine.train.metrics import read_metrics
from mova_engine.train.training_state import checkpoints_of


def run(world: World, clips: Path, out: Path, **settings) -> list:
    return world.train(clips, out, **{"steps": 4, "every": 2, "batch": 4, **settings})


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


def test_a_run_that_goes_on_is_the_uninterrupted_one_bit_for_bit(clips, worlds, shared, tmp_path):
    out = tmp_path / "again"
    (out / "checkpoints").mkdir(parents=True)
    shutil.copytree(shared / "checkpoints" / "step-000002", out / "checkpoints" / "step-000002")
    run(worlds(2), clips, out)
    found, expected = (tensors(folder / "checkpoints" / "step-000004") for folder in (out, shared))
    assert found.keys() == expected.keys() and all(torch.equal(x, expected[name]) for name, x in found.items())


def test_a_full_disk_of_one_process_stops_all_and_leaves_no_half_checkpoint(clips, worlds, tmp_path):
    """One of the two says so; what was complete stays."""
    out = tmp_path / "run"
    run(worlds(2), clips, out, steps=2)
    said = [status for status, _ in run(worlds(2), clips, out, steps=4, fault="full disk")]
    assert sum("No space left on device" in str(each) and "rank 1" in str(each) for each in said) == 1, said
    assert [step for step, _ in checkpoints_of(out)] == [2]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000002"]


def test_a_process_whose_loss_is_not_finite_is_named(clips, worlds, tmp_path):
    said = run(worlds(2), clips, tmp_path / "run", fault="not finite", optim={"max_nonfinite": 2})
    (status, text), (other, _) = said
    assert "warning: step 1 skipped: its loss or gradient is not finite (rank 1; clips train_" in text
    assert "2 steps in a row were not finite" in status and other == "SystemExit: 2"


SHARED = {"shard": True, "context_parallel": 2}


@pytest.mark.parametrize("parallel", [SHARED, {"shard": True}, {"context_parallel": 2}, {}])
def test_the_slowest_process_is_named_with_what_it_is_slow_in(clips, worlds, tmp_path, parallel):
    """All take equally long for a step, since they wait for it: only the waits tell."""
    (status, said), _ = run(worlds(2), clips, tmp_path / "run", fault="slow", parallel=parallel, steps=3, batch=1)
    assert status == 0
    # Of the first step it may be chance; of the third nothing is known when the run ends.
    line = r"straggler: rank (\d) \(\S+\) is \d+\.\d x the median in forward and backward \(step (\d)\)"
    assert re.findall(line, said) == [("1", "2")]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("straggler/rank") for row in rows] == [None, 1, 1]
    assert all(row["seconds/forward_backward/most"] > 1 for row in rows[1:])
    # The other one has waited for about as long.
    assert all(row["seconds/exchange/most"] > 0.7 for row in rows[1:])


@pytest.mark.parametrize("checkpointing", ["none", "full", pytest.param("selective", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("spoilt layer", "forward, in video_dit.blocks.0.ffn, operator aten::div"),
        ("spoilt gradient", "backward, in audio_dit.blocks.0.ffn, of SpoiltGradientBackward"),
    ],
)
def test_the_first_layer_of_the_process_that_makes_it_is_named(clips, worlds, tmp_path, fault, where, checkpointing):
    """Of two that share clips and weights: what is not finite reaches the other one in the next exchange."""
    settings = {"debug": "nan", "memory": {"checkpointing": checkpointing}, "fault": fault}
    said = [status for status, _ in run(worlds(2), clips, tmp_path / "run", **settings)]
    assert sum(f"step 1 is not finite. rank 1: {where}" in str(each) for each in said) == 1, said


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("another setting", "rank 1 was started with other settings than rank 0: optim.lr: 0.002 -> 0.5; give all"),
        (
            "unreadable on opening",
            r"the clips: 'train_00002.mp4' only in rank 0 \(rank 1: Input/output error\); ",
        ),
        (
            "unreadable on preloading",
            r"the clips: 'train_00002.mp4' only in rank 0 \(rank 1: \S+: Stale file handle\)",
        ),
        ("unreadable on fitting", "rank 1 fitted or read other codecs than rank 0: start again if a file"),
    ],
)
def test_processes_that_would_not_train_on_the_same_find_out_at_the_start(clips, worlds, tmp_path, fault, told):
    """Which clips can be used, how they are encoded and with what settings is each process's own finding."""
    found = run(worlds(2), clips, tmp_path / "run", fault=fault, parallel={"context_parallel": 2})
    (said, _), (other, _) = found
    first = said if said != "SystemExit: 2" else other
    assert re.search(told, first) and "\n" not in first, found
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_processes_that_would_go_on_from_different_checkpoints_find_out(clips, worlds, shared, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(shared, out)
    (said, _), (other, _) = run(worlds(2), clips, out, steps=6, fault="another checkpoint")
    first = said if said != "SystemExit: 2" else other
    assert "would not start alike: rank 0 from step-000004 and rank 1 anew; all of them must see" in first


def test_what_all_processes_meet_is_told_once(worlds):
    assert worlds(2).run("both_fail") == ["MovaError: the disk is full", "SystemExit: 2"]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        pytest.param(
            "silent",
            "rank 1 on .* died or was stopped: no heartbeat for . s, the last at 'step 1: reading clips'",
            marks=pytest.mark.slow,
        ),
        ("hangs", "rank 1 on .* hangs: at 'step 1: reading clips' for . s, while the others wait"),
        ("failed", "rank 1 on .* failed at 'step 1: reading clips': the disk is full"),
        ("lost", "rank 1 on .* died or was stopped"),
        ("terminated", "rank 1 on .* died or was stopped"),
        ("lost late", "rank 1 on .* died or was stopped"),
    ],
)
def test_a_process_that_fails_is_named_and_all_end(worlds, case, told):
    (said, status), (own, _) = worlds(2).run("watched", case=case)
    if case == "failed":
        # It speaks for itself.
        assert own == "rank 1: the disk is full" and status == 2
    else:
        assert re.match(told, said), said
    assert case.startswith("lost") or case == "terminated" or status == 2


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


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"parallel": {"replicate": 2}}, "parallel.replicate concerns sharded weights"),
        ({"memory": {"optimizer": "host"}}, "memory.optimizer host: its state comes from the host in shards only"),
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
    script = repo_root / "tests" / "distributed" / "kill.py"
    command = [sys.executable, str(script), "--times", "3", "--processes", "4", "--during", during]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0 and "bit for bit" in done.stdout, done.stdout + done.stderr
    assert "NOT NAMED" not in done.stdout, done.stdout


@pytest.mark.slow
def test_stops_at_random_moments_are_obeyed_and_leave_a_checkpoint(repo_root):
    command = [sys.executable, str(repo_root / "tests" / "distributed" / "stop.py"), "--times", "5"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_processes_killed_in_a_job_that_restarts_them_cost_nothing(repo_root):
    script = repo_root / "tests" / "distributed" / "restart_kills.py"
    command = [sys.executable, str(script), "--times", "2", "--processes", "4", "--seed", "1"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0 and "2 kills, the same bit for bit" in done.stdout, done.stdout + done.stderr
    assert "the dead rank was named in 2 of 2" in done.stdout, done.stdout
