"""Checkpoints go from any number of processes to any other: no bit changes, no clip is lost, training goes on."""

from pathlib import Path

import pytest
import torch
from distributed.runs import clips_taken, resaved, run_shared
from distributed.saved import different, losses, progress, tensors

from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec
from mova_engine.config.model import get_preset
from mova_engine.data.dataset import open_dataset
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.loader import build_loader


def resave(worlds, clips: Path, source: Path, out: Path, size: int, replicate: int = 1, **settings) -> Path:
    """The checkpoint as `size` processes save it after they have loaded it, each its own rows."""
    if size == 1:
        resaved(str(source), clips=str(clips), out=str(out), batch=4, **settings)
    else:
        parallel = {"shard": True, "replicate": replicate}
        worlds(size).train(clips, out, "resaved", source=str(source), batch=4, parallel=parallel, **settings)
    return out / "checkpoints" / source.name


def test_a_checkpoint_of_two_processes_goes_to_one_and_back_without_a_bit_changed(clips, worlds, shared, tmp_path):
    """Weights, average, moments, position in the data and the model's folder."""
    source = shared / "checkpoints" / "step-000004"
    assert progress(source)["loader"]["position"] == 16 and any("optimizer" in name for name in tensors(source))
    one = resave(worlds, clips, source, tmp_path / "one", 1)
    assert different(one, source) == []
    assert different(resave(worlds, clips, one, tmp_path / "two", 2), source) == []


def test_moments_in_8_bits_go_to_one_process_and_back_without_a_bit_changed(clips, worlds, tmp_path):
    """Codes and scales are divided and joined with the rows of their weights."""
    eight = {"optim": {"moments": "8bit"}}
    assert worlds(2).train(clips, tmp_path / "run", steps=1, every=1, batch=4, **eight)[0][0] == 0
    source = tmp_path / "run" / "checkpoints" / "step-000001"
    held = {name: x.dtype for name, x in tensors(source).items() if name.endswith("ffn.0.weight:exp_avg")}
    assert held and set(held.values()) == {torch.uint8}
    one = resave(worlds, clips, source, tmp_path / "one", 1, **eight)
    assert different(one, source) == []
    assert different(resave(worlds, clips, one, tmp_path / "two", 2, **eight), source) == []


@pytest.mark.slow
@pytest.mark.parametrize(("size", "replicate"), [(1, 1), (2, 1), (8, 1), (8, 2), (4, 2)])
def test_a_checkpoint_of_four_processes_goes_to_others_and_back_without_a_bit_changed(
    clips, worlds, shared_by_four, tmp_path, size, replicate
):
    """Also where there are more processes than a weight has rows, and where there are two copies."""
    source = shared_by_four / "checkpoints" / "step-000002"
    there = resave(worlds, clips, source, tmp_path / "there", size, replicate)
    assert different(there, source) == []
    assert different(resave(worlds, clips, there, tmp_path / "back", 4), source) == []


def test_any_number_of_processes_goes_on_from_a_checkpoint(clips, worlds, shared, tmp_path):
    """Two to one and one to two; losses are those of the run that went through."""
    middle = shared / "checkpoints" / "step-000002"
    status, _ = run_shared(clips=str(clips), out=str(tmp_path / "one"), steps=4, batch=4, every=3, resume=str(middle))
    assert status == 0 and losses(tmp_path / "one") == pytest.approx(losses(shared)[2:], rel=1e-5)
    back = tmp_path / "one" / "checkpoints" / "step-000003"
    found = worlds(2).train(clips, tmp_path / "two", steps=4, every=2, batch=4, resume=str(back))
    assert [status for status, _ in found] == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(shared)[3:], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "batch"), [(1, 4), (2, 4), (8, 1)])
def test_what_four_processes_have_begun_others_go_on_with_and_four_again(
    clips, worlds, shared_by_four, tmp_path, size, batch
):
    """Four clips a step everywhere. Losses, and all that a checkpoint holds, are those of four without a change."""
    middle = shared_by_four / "checkpoints" / "step-000002"
    settings = {"steps": 4, "batch": batch, "every": 3, "resume": str(middle)}
    if size == 1:
        found = [run_shared(clips=str(clips), out=str(tmp_path / "others"), **settings)]
    else:
        found = worlds(size).train(clips, tmp_path / "others", **settings)
    assert [status for status, _ in found] == [0] * size
    assert losses(tmp_path / "others") == pytest.approx(losses(shared_by_four)[2:], rel=1e-5)
    back = str(tmp_path / "others" / "checkpoints" / "step-000003")
    found = worlds(4).train(clips, tmp_path / "four", steps=4, every=2, batch=2, resume=back)
    assert [status for status, _ in found] == [0] * 4
    assert losses(tmp_path / "four") == pytest.approx(losses(shared_by_four)[3:], rel=1e-5)
    expected = shared_by_four / "checkpoints" / "step-000004"
    for run in ("others", "four"):
        end = tmp_path / run / "checkpoints" / "step-000004"
        assert progress(end)["loader"] == progress(expected)["loader"]
        ours, theirs = tensors(end), tensors(expected)
        # AdamW magnifies what rounding leaves of gradients that are all but zero.
        assert ours.keys() == theirs.keys() and max(float((x - theirs[n]).abs().max()) for n, x in ours.items()) < 1e-4


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


@pytest.mark.slow
def test_runs_of_four_two_and_one_process_give_every_clip_once_an_epoch(clips, worlds, tmp_path):
    """Each on clips of its own: four, then two, then two of one process; then the next epoch, by four again."""
    common, seen, out = {"batch": 1, "every": 1}, [], tmp_path / "run"
    for size, steps in ((4, 1), (2, 2), (1, 4), (4, 6)):
        if size == 1:
            found = [clips_taken(clips=str(clips), out=str(out), steps=steps, **common)]
        else:
            found = worlds(size).train(clips, out, "clips_taken", steps=steps, parallel={"shard": True}, **common)
        seen += [name for step in zip(*found, strict=True) for names in step for name in names]
    assert len(seen) == 16 and len(set(seen[:8])) == len(set(seen[8:])) == 8
