"""Checkpoints on bad days: a full disk, leftovers of a kill, damage, another model; and which ones are kept."""

import json
import resource
import shutil
import zlib
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mova_engine.backend import get_backend
from mova_engine.checkpoints import integrity
from mova_engine.checkpoints.integrity import CHECKSUMS, damage, is_own, write_checksums
from mova_engine.config.train import CheckpointSettings
from mova_engine.errors import MovaError
from mova_engine.files.crc import joined
from mova_engine.files.folders import UNFINISHED
from mova_engine.inference.pipeline import load_pipeline
from mova_engine.train.training_state import checkpoints_of, clean_up, retain

# Bytes of a range of the file in `written`.
RANGE_OF_TEST = 4


@contextmanager
def small_disk(limit: int):
    """No file may grow beyond `limit` bytes: writing more fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(run) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_newest_are_kept_and_those_of_round_steps_for_good(small, ran):
    config = small(steps=6, checkpoint={"every": 1, "keep_last": 2, "keep_every": 3})
    ran(config)
    assert names(config.folder) == ["step-000003", "step-000005", "step-000006"]


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(small, ran):
    first = ran(small(steps=2))
    failure = r"cannot write .*step-000003.*: File too large.*go on from step-000002"
    with small_disk(1_000_000), pytest.raises(MovaError, match=failure):
        ran(small(steps=4, checkpoint={"every": 1}))
    assert names(first.config.folder) == ["step-000002"]
    assert ran(small(steps=3)).status == 0  # and with room again the run goes on from there


def test_a_full_disk_can_be_trained_through(small, ran, monkeypatch):
    from mova_engine.train.trainer import Trainer

    validate = Trainer._validate

    def room_again_at_the_last_step(self, *args):
        if self.step == 3:
            limits.__exit__(None, None, None)
        return validate(self, *args)

    config = small(steps=3, checkpoint={"every": 1, "on_error": "continue"})
    ran(small("warm", steps=1))  # the cache of latents is filled
    monkeypatch.setattr(Trainer, "_validate", room_again_at_the_last_step)
    limits = small_disk(1_000_000)
    limits.__enter__()
    done = ran(config)
    assert done.status == 0 and done.said.count("no checkpoint at step") == 2
    assert names(config.folder) == ["step-000003"]


def test_leftovers_of_a_kill_are_cleared_and_nothing_else(tmp_path):
    folder = tmp_path / "checkpoints"
    for leftover in (".step-000009.new", ".step-000001.old", ".step-000003.old"):
        written(folder / leftover)
        (folder / leftover / UNFINISHED).touch()
    written(folder / "step-000003")
    written(folder / ".step-000005.old")  # renamed, and its successor not yet in its place
    written(folder / "step-000006")
    written(folder / ".step-000006.old")  # its successor is in its place
    written(folder / "step-000007")
    written(folder / ".step-000007.old")
    for theirs in (folder / ".step-000007.old" / "notes.txt", folder / ".step-000008.new" / "notes.txt"):
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_text("mine")
    clean_up(tmp_path)
    assert names(tmp_path) == [
        ".step-000007.old", ".step-000008.new", "step-000003", "step-000005", "step-000006", "step-000007"
    ]  # fmt: skip
    assert all(is_own(folder / name) for name in names(tmp_path) if name.startswith("s"))


def test_a_newest_checkpoint_without_its_state_is_not_passed_over(small, ran):
    first = ran(small(steps=2))
    folder = first.config.folder / "checkpoints"
    shutil.copytree(folder / "step-000002" / "audio_dit", folder / "step-000009" / "audio_dit")
    with pytest.raises(MovaError, match="step-000009 is no whole checkpoint.*--resume .*step-000002"):
        ran(small(steps=3))
    assert ran(small(steps=9, checkpoint={"every": 9}, resume=str(folder / "step-000002"))).status == 0
    # What was in the way of the ninth step's has moved aside, whole.
    assert names(first.config.folder) == ["step-000002", "step-000009", "step-000009.kept-1"]
    assert [path.name for path in (folder / "step-000009.kept-1").iterdir()] == ["audio_dit"]


def written(folder) -> None:
    """What passes for a checkpoint as a run wrote it."""
    (folder / "training").mkdir(parents=True)
    (folder / "training" / "state.json").write_text('{"format": 1, "progress": {"skipped_in_a_row": 0}}')
    (folder / "weights").write_bytes(bytes(3 * RANGE_OF_TEST))
    known = [[RANGE_OF_TEST, RANGE_OF_TEST, zlib.crc32(bytes(RANGE_OF_TEST))]]
    write_checksums(folder, {"weights": np.array(known, np.int64)})


def test_every_byte_of_a_checkpoint_is_watched(tmp_path):
    folder = tmp_path / "step-000001"
    written(folder)
    assert damage(folder) is None and is_own(folder)
    for offset in range(3 * RANGE_OF_TEST):
        data = bytearray(3 * RANGE_OF_TEST)
        data[offset] = 1
        (folder / "weights").write_bytes(data)
        found = [damage(folder, part, 2) for part in range(2)]
        assert found.count("weights has other bytes than were written") == 1, offset
        assert not is_own(folder)
    (folder / "weights").write_bytes(bytes(3 * RANGE_OF_TEST - 1))
    assert damage(folder) == "weights has 11 bytes, 12 were written"
    (folder / "weights").unlink()
    assert damage(folder) == "weights is missing"


def test_checksums_of_neighbours_are_joined(tmp_path, monkeypatch):
    """As many processes write a file: a part that begins in the middle, a gap, one part twice, in no order."""
    draw = np.random.default_rng(0)
    data, ends = draw.bytes(5000), np.sort(draw.choice(np.arange(1, 5000), 300, replace=False))
    parts = [(a, b - a, zlib.crc32(data[a:b])) for a, b in pairwise([17, *ends[ends > 17].tolist()])]
    del parts[100]
    parts = np.array(parts, np.int64)
    shuffled = draw.permutation(np.concatenate([parts, parts[5:6]]))
    found = joined(shuffled, 1000)
    assert len(found) == 6 and found[:, 1].sum() == parts[:, 1].sum()
    assert all(zlib.crc32(data[offset : offset + size]) == crc for offset, size, crc in found.tolist())
    (tmp_path / "training").mkdir()
    (tmp_path / "weights").write_bytes(data)
    monkeypatch.setattr(integrity, "RANGE", 1000)
    write_checksums(tmp_path, {"weights": shuffled})
    listed = json.loads((tmp_path / CHECKSUMS).read_text())["files"]["weights"]
    assert len(listed) == 9 and damage(tmp_path) is None
    for offset in (0, 16, 17, 2500, int(ends[100]), 4999):
        (tmp_path / "weights").write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        assert damage(tmp_path) == "weights has other bytes than were written", offset


def test_a_file_that_was_cut_off_is_found_without_checksums(tmp_path):
    """In checkpoints of earlier versions."""
    save_file({"x": torch.zeros(9)}, tmp_path / "weights.safetensors")
    assert damage(tmp_path) is None
    (tmp_path / "weights.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-1])
    assert "weights.safetensors is damaged or incomplete" in damage(tmp_path)


def test_only_what_a_run_wrote_is_removed(tmp_path):
    """A note of the user's in one checkpoint, a picture instead of the weights of another, a third downloaded."""
    every = [tmp_path / "checkpoints" / f"step-{step:06d}" for step in range(1, 7)]
    for folder in every:
        written(folder)
    (every[0] / "notes.txt").write_text("the best so far")
    (every[1] / "weights").write_bytes(b"another one")
    (every[2] / CHECKSUMS).unlink()
    assert retain(tmp_path, CheckpointSettings(keep_last=2)) == [every[3]]
    assert [folder.exists() for folder in every] == [True, True, True, False, True, True]


def test_checkpoints_amid_failing_steps_do_not_push_out_the_good_ones(tmp_path):
    for step in range(1, 8):
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        written(folder)
        state = {"format": 1, "progress": {"skipped_in_a_row": max(step - 3, 0)}}
        (folder / "training" / "state.json").write_text(json.dumps(state))
        write_checksums(folder, {})
    retain(tmp_path, CheckpointSettings(keep_last=2))
    assert [step for step, _ in checkpoints_of(tmp_path)] == [2, 3, 6, 7]


def test_a_flipped_byte_is_found_and_the_way_back_named(small, ran):
    config = small(steps=2, checkpoint={"every": 1})
    ran(config)
    folder = config.folder / "checkpoints"
    weights = folder / "step-000002" / "audio_dit" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(MovaError, match=r"step-000002 is damaged: audio_dit/.* other bytes .*: copy it again"):
        load_pipeline(folder / "step-000002", get_backend("cpu"))
    rows = (config.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(MovaError, match=r"step-000002 is damaged: audio_dit/.* other bytes .*--resume .*step-000001"):
        ran(small(steps=3))
    assert (config.folder / "metrics.jsonl").read_bytes() == rows
    back = ran(small(steps=3, resume=str(folder / "step-000001")))
    assert back.status == 0 and [row["step"] for row in back.rows] == [1, 2, 3]
    assert (config.folder / "metrics_replaced.jsonl").read_bytes() == rows.splitlines(keepends=True)[1]


def test_a_run_whose_checkpoints_are_gone_keeps_its_metrics(small, ran):
    config = small(steps=2)
    ran(config)
    rows = (config.folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(config.folder / "checkpoints")
    with pytest.raises(MovaError, match="has saved checkpoints/step-000002, but its checkpoints are gone"):
        ran(small(steps=2))
    assert (config.folder / "metrics.jsonl").read_bytes() == rows
    assert ran(small(steps=1, resume="none")).status == 0
    assert (config.folder / "metrics_replaced.jsonl").read_bytes() == rows


@pytest.mark.parametrize("file", ["master.safetensors", "optimizer.safetensors", "state.json"])
def test_damage_is_named(small, ran, file):
    config = small(steps=1)
    ran(config)
    damaged = config.folder / "checkpoints" / "step-000001" / "training" / file
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(MovaError, match=damaged.name):
        ran(small(steps=2))


def test_another_models_checkpoint_is_refused_by_name(small, ran):
    first = ran(small("first", steps=1, task="audio"))
    checkpoint = first.config.folder / "checkpoints" / "step-000001"
    codecs = ran(small("codecs", steps=1)).config.folder / "checkpoints" / "step-000001"
    with pytest.raises(MovaError, match="belongs to another model: .*video_dit|belongs to another model: .*dual_tower"):
        ran(small("second", steps=2, resume=str(checkpoint), model={"codecs": str(codecs)}))


def test_other_clips_than_the_checkpoints_are_refused(small, ran, clips, tmp_path):
    ran(small(steps=1))
    fewer = tmp_path / "fewer"
    shutil.copytree(clips, fewer)
    lines = (fewer / "metadata.jsonl").read_text().splitlines(keepends=True)
    (fewer / "metadata.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(MovaError, match=r"checkpoint \(12 then, 11 now: 1 gone\): .*give --loader.changed go-on"):
        ran(small(steps=2, data=fewer))
    done = ran(small(steps=2, data=fewer, loader={"changed": "go-on"}))
    assert done.status == 0 and "continuing with the present ones at the beginning of epoch 2" in done.said
