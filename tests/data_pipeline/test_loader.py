"""Which clips come when: every one once an epoch, the same for any number of workers, resumed to the clip."""

import gc
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal

import av
import pytest
import torch
from data_pipeline.conftest import COUNT

from mova_engine.data.dataset import LatentDataset, open_dataset
from mova_engine.data.loader import build_loader
from mova_engine.data.metadata import read_metadata
from mova_engine.errors import MovaError

BATCH = 3


@pytest.fixture
def dataset(made_clips, make_cache) -> LatentDataset:
    return open_dataset(made_clips, make_cache())


@pytest.fixture
def on_disk(made_clips, make_cache) -> LatentDataset:
    return open_dataset(made_clips, make_cache(), preload=False)


def take(loader, count: int) -> list[dict]:
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def ids(batches) -> list[list[str]]:
    return [batch["id"] for batch in batches]


def assert_equal(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def test_a_batch_holds_what_the_trainer_needs(dataset):
    [batch] = take(build_loader(dataset, BATCH), 1)
    shapes = {name: list(x.shape) for name, x in batch.items() if isinstance(x, torch.Tensor)}
    assert shapes == {
        "video_latents": [3, 16, 2, 4, 6],
        "image_latents": [3, 16, 2, 4, 6],
        "audio_latents": [3, 128, 11],
        "heard": [3, 1],
        "text": [3, 8, 16],
    }
    assert all(batch[name].dtype == torch.float32 for name in shapes)
    entries = {entry.id: entry for entry in dataset.entries}
    for row, name in enumerate(batch["id"]):
        assert batch["caption"][row] == entries[name].caption
        for key, x in dataset.cache.get(entries[name]).items():
            assert torch.equal(batch[key][row], x)
    assert dataset[2]["id"] == "2.mp4" and torch.equal(dataset[2]["text"], dataset.batch([2])["text"][0])


def test_every_clip_once_an_epoch_in_another_order(dataset):
    loader = build_loader(dataset, 1, seed=5)
    names = [name for batch in take(loader, 3 * COUNT) for name in batch["id"]]
    epochs = [names[i : i + COUNT] for i in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs) and len(set(epochs[0])) == COUNT
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert loader.epoch == 3 and loader.position == 3 * COUNT
    again, other = (take(build_loader(dataset, 1, seed=seed), COUNT) for seed in (5, 6))
    assert [name for batch in again for name in batch["id"]] == epochs[0] != [n for b in other for n in b["id"]]


def test_without_shuffling_the_order_is_the_list(dataset):
    assert ids(take(build_loader(dataset, 4, shuffle=False), 2)) == [
        ["0.mp4", "1.mp4", "2.mp4", "3.mp4"],
        ["4.mp4", "5.mp4", "6.mp4", "0.mp4"],
    ]


def test_workers_and_memory_make_no_difference(dataset, on_disk):
    assert dataset.in_memory and not on_disk.in_memory
    expected = take(build_loader(dataset, BATCH, seed=1), 6)
    for workers in (0, 1, 2):
        assert_equal(take(build_loader(on_disk, BATCH, seed=1, workers=workers), 6), expected)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (2, 0), (0, 1)])
@pytest.mark.parametrize("taken", [0, 1, 4])
def test_resume_is_exact(on_disk, before, after, taken):
    """In mid-epoch, with batches prepared but not taken, and with another number of workers than before."""
    expected = take(build_loader(on_disk, BATCH, seed=1), 8)
    loader = build_loader(on_disk, BATCH, seed=1, workers=before)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = build_loader(on_disk, BATCH, seed=1, workers=after)
    resumed.load_state_dict(state)
    assert_equal(take(resumed, 8 - taken), expected[taken:])
    assert resumed.position == 8 * BATCH and resumed.epoch == 8 * BATCH // COUNT


def test_a_new_iterator_goes_on_where_the_last_stopped(dataset):
    expected = ids(take(build_loader(dataset, BATCH), 5))
    loader = build_loader(dataset, BATCH)
    assert ids(take(loader, 2)) + ids(take(loader, 3)) == expected


def test_ranks_share_one_stream(dataset):
    """Two ranks with batches of 2 see, together and in order, what one rank with batches of 4 sees."""
    whole = ids(take(build_loader(dataset, 4, seed=3), 7))
    first, second = (ids(take(build_loader(dataset, 2, seed=3, rank=rank, world=2), 7)) for rank in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    # And one may take over from two.
    loader = build_loader(dataset, 2, seed=3, rank=1, world=2)
    take(loader, 3)
    alone = build_loader(dataset, 4, seed=3)
    alone.load_state_dict(loader.state_dict())
    assert ids(take(alone, 4)) == whole[3:]


def test_loading_leaves_the_random_numbers_alone(on_disk):
    before = torch.get_rng_state()
    take(build_loader(on_disk, BATCH, workers=2), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_leave_stop_signals_to_the_trainer_and_go_when_it_has_enough(on_disk, number):
    """A signal to the whole group reaches them too, at any time; here each of them gets it alone."""
    expected = take(build_loader(on_disk, BATCH, seed=1), 8)
    others, blocked = multiprocessing.active_children(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    batches = iter(build_loader(on_disk, BATCH, seed=1, workers=2))
    found = [next(batches)]
    workers = [child for child in multiprocessing.active_children() if child not in others]
    assert len(workers) == 2 and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
    for worker in workers:
        os.kill(worker.pid, number)
    found += [next(batches) for _ in range(7)]
    assert_equal(found, expected)
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.timeout(60)
def test_workers_outlive_forgotten_decoders(on_disk, made_clips):
    """A decoder with threads, garbage but not collected when the workers fork: freeing it there would never end."""
    container = av.open(str(made_clips / "0.mp4"))
    container.streams.video[0].thread_type = "FRAME"
    container.streams.video[0].codec_context.thread_count = 2
    frames = container.decode(video=0)
    cycle = [container, frames, next(frames)]
    cycle.append(cycle)
    gc.disable()
    try:
        del container, frames, cycle
        stored_batch = on_disk.stored_batch

        def collecting(indices):
            gc.collect()
            return stored_batch(indices)

        on_disk.stored_batch = collecting
        expected = take(build_loader(on_disk, BATCH), 2)
        assert_equal(take(build_loader(on_disk, BATCH, workers=1), 2), expected)
    finally:
        gc.enable()


def test_a_state_of_other_clips_or_another_seed_is_refused(dataset):
    state = build_loader(dataset, BATCH, seed=1).state_dict()
    with pytest.raises(MovaError, match="drawn from seed 1, not 2: give --seed 1"):
        build_loader(dataset, BATCH, seed=2).load_state_dict(state)
    fewer = LatentDataset(dataset.entries[1:], dataset.cache)
    with pytest.raises(MovaError, match=r"checkpoint \(7 then, 6 now: 1 gone\): .*--loader.changed go-on"):
        build_loader(fewer, BATCH, seed=1).load_state_dict(state)
    other = LatentDataset(dataset.entries[::-1], dataset.cache)
    with pytest.raises(MovaError, match=r"\(7 then, 7 now: the same ones in another order\)"):
        build_loader(other, BATCH, seed=1).load_state_dict(state)
    del state["marks"]  # as of earlier versions
    with pytest.raises(MovaError, match=r"checkpoint \(7 then, 6 now\): "):
        build_loader(fewer, BATCH, seed=1).load_state_dict(state)


@pytest.mark.parametrize(("position", "epoch"), [(0, 0), (1, 1), (4, 1), (7, 2)])
def test_a_run_goes_on_with_other_clips_from_the_next_epoch(dataset, position, epoch):
    """Of four clips then and seven now: each of the seven comes once in the epoch that begins."""
    before = build_loader(LatentDataset(dataset.entries[:4], dataset.cache), 1, seed=1)
    before._position = position
    after = build_loader(dataset, 1, seed=1)
    [note] = after.load_state_dict(before.state_dict(), "go-on")
    assert re.search(
        rf"\(4 then, 7 now: 3 new \(.*\)\): continuing with the present ones at the beginning of epoch {epoch + 1}$",
        note,
    )
    assert (after.position, after.epoch) == (7 * epoch, epoch)
    assert sorted(name for [name] in ids(take(after, 7))) == sorted(entry.id for entry in dataset.entries)
    assert after.load_state_dict(after.state_dict()) == []


def test_a_changed_caption_and_a_replaced_file_are_told_and_no_reason_to_stop(clips, make_cache):
    whole = open_dataset(clips, make_cache())
    state = build_loader(whole, BATCH).state_dict()
    rows = (clips / "metadata.jsonl").read_text().replace("clip number 1", "another one")
    (clips / "metadata.jsonl").write_text(rows)
    shutil.copy(clips / "0.mp4", clips / "3.mp4")
    notes = build_loader(open_dataset(clips, make_cache()), BATCH).load_state_dict(state)
    assert notes == [
        "clips are not as in the checkpoint: 2 captions changed ('1.mp4', '4.mp4'), 1 file replaced ('3.mp4')"
    ]


def test_sizes_that_make_no_sense(dataset):
    for options, message in (
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"rank": 2, "world": 2}, "rank must be between 0 and 1"),
    ):
        with pytest.raises(MovaError, match=message):
            build_loader(dataset, **{"batch_size": 1, **options})


def spoil(clips) -> None:
    (clips / "1.mp4").write_bytes(b"nonsense")
    (clips / "5.mp4").unlink()


def test_bad_clips_are_skipped_by_name(clips, make_cache, caplog):
    spoil(clips)
    dataset = open_dataset(clips, make_cache(), bad_clips="skip")
    assert [entry.id for entry in dataset.entries] == ["0.mp4", "2.mp4", "3.mp4", "4.mp4", "6.mp4"]
    assert "clip '1.mp4' cannot be used" in caplog.text and f"{clips / '5.mp4'}: no such file" in caplog.text
    assert "2 of 7 clips cannot be used and are left out" in caplog.text


def test_bad_clips_stop_the_run_before_it_begins(clips, make_cache):
    spoil(clips)
    with pytest.raises(MovaError, match="2 of 7 clips cannot be used: .*1.mp4: damaged"):
        open_dataset(clips, make_cache(), bad_clips="stop")
    with pytest.raises(MovaError, match="must be 'skip' or 'stop', got 'ignore'"):
        open_dataset(clips, make_cache(), bad_clips="ignore")
    for entry in read_metadata(clips):
        entry.path.write_bytes(b"nonsense")
    with pytest.raises(MovaError, match="7 of 7 clips cannot be used"):
        open_dataset(clips, make_cache(), bad_clips="skip")


def test_all_ranks_agree_on_the_clips(clips, make_cache):
    spoil(clips)
    found = [open_dataset(clips, make_cache(), rank=rank, world=3).entries for rank in range(3)]
    assert found[0] == found[1] == found[2] and len(found[0]) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_clip_lost_during_training(clips, make_cache, caplog, workers):
    """Its entry damaged, its file gone: the next clip takes its place, or the run stops with one line."""
    caplog.set_level(logging.WARNING)
    for bad_clips in ("skip", "stop"):
        dataset = open_dataset(clips, make_cache(), preload=False, bad_clips=bad_clips)
        entry = dataset.entries[2]
        if entry.path.exists():
            make_cache()._clip_path(entry).unlink()
            entry.path.rename(clips / "gone.mp4")
        loader = build_loader(dataset, 4, shuffle=False, workers=workers)
        if bad_clips == "skip":
            assert ids(take(loader, 1)) == [["0.mp4", "1.mp4", "3.mp4", "3.mp4"]]
            assert "clip '2.mp4' cannot be used, the next takes its place" in caplog.text
            (clips / "gone.mp4").rename(entry.path)
        else:
            with pytest.raises(MovaError, match="2.mp4: no such file") as caught:
                take(loader, 1)
            assert "\n" not in str(caught.value)


def test_no_clip_left_is_an_error(clips, make_cache):
    dataset = open_dataset(clips, make_cache(), preload=False)
    for file in [*clips.glob("*.mp4"), *dataset.cache.folder.rglob("*.safetensors")]:
        file.unlink()
    with pytest.raises(MovaError, match="none of the 7 clips can be used: "):
        dataset.batch([0])
    with pytest.raises(MovaError, match="holds no clips"):
        LatentDataset([], dataset.cache)
