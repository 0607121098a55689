"""Checkpoints on bad days: a full disk, leftovers of a kill, damage, another model; and which ones are kept."""

import resource
import shutil
from contextlib import contextmanager

import pytest

from mova_engine.errors import MovaError
from mova_engine.train.checkpoints import checkpoints_of


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


def test_leftovers_of_a_kill_are_cleared_and_never_taken_for_checkpoints(small, ran):
    config = small(steps=2)
    ran(config)
    folder = config.folder / "checkpoints"
    for leftover in (".step-000009.new", "..step-000009.new.new", ".step-000001.old"):
        shutil.copytree(folder / "step-000002", folder / leftover)
    shutil.copytree(folder / "step-000002" / "audio_dit", folder / "step-000009")
    assert [step for step, _ in checkpoints_of(config.folder)] == [2]
    assert ran(small(steps=3)).status == 0
    assert names(config.folder) == ["step-000002", "step-000003", "step-000009"]


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
    with pytest.raises(MovaError, match="clips are not those of the checkpoint"):
        ran(small(steps=2, data=fewer))
