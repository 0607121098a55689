"""Sets of clips mixed by weight: exact shares, each set's own epochs, resumed to the clip, changed on purpose alone."""

import json
from itertools import islice

import pytest
import torch
from data_pipeline.conftest import COUNT

from mova_engine.config.data_mix import parse_mix
from mova_engine.config.recipes import load_config
from mova_engine.data.dataset import LatentDataset, open_dataset
from mova_engine.data.loader import ClipOrder, build_loader
from mova_engine.data.mixture import BLOCK, MixedClips, MixedLoader, MixedSet, MixOrder, Origin
from mova_engine.errors import MovaError

NAMES, COUNTS, WEIGHTS = ("music", "sound", "speech"), (5, 3, 11), (3.0, 1.0, 0.7)


def order(seed: int = 1, *, weights: tuple[float, ...] = WEIGHTS, **options) -> MixOrder:
    return MixOrder(NAMES, COUNTS, weights, seed, **options)


def owner(index: int) -> int:
    return 0 if index < 5 else 1 if index < 8 else 2


def test_shares_are_exact_at_each_block_and_counts_never_fall():
    mix, whole = order(), sum(WEIGHTS)
    before = (0, 0, 0)
    for position in (*range(3 * BLOCK), *(BLOCK * n for n in (4, 5, 100, 10**5, 10**5 + 1, 10**8))):
        taken = mix.taken(position)
        assert sum(taken) == position and all(now >= then for now, then in zip(taken, before, strict=True))
        before = taken
        if position % BLOCK == 0:
            assert all(abs(n - position * w / whole) <= 2 for n, w in zip(taken, WEIGHTS, strict=True))


def test_the_apportionment_is_that_of_all_places_sorted():
    weights = [w / sum(WEIGHTS) for w in WEIGHTS]
    places = sorted(((j + 0.5) / w, k) for k, w in enumerate(weights) for j in range(300))
    for blocks in range(5):
        first = [k for _, k in places[: blocks * BLOCK]]
        assert order().taken(blocks * BLOCK) == tuple(first.count(k) for k in range(3))


def test_weights_that_are_far_apart_and_sets_of_one_clip():
    mix = MixOrder(("a", "b", "c"), (1, 1, 2), (1e-100, 1e100, 1e-9), 1)
    assert [mix[position] for position in (0, 1, 10**9)] == [1, 1, 1] and mix.taken(10**9) == (0, 10**9, 0)
    alike = MixOrder(("a", "b"), (1, 1), (1e9, 1e-9), 1)
    assert alike.taken(10**6) == (10**6, 0) and alike[10**6] == 0


def test_the_stream_gives_what_the_counts_say_and_is_shuffled_within_blocks():
    mix = order()
    given = [owner(mix[position]) for position in range(4 * BLOCK)]
    for position in range(4 * BLOCK):
        assert tuple(given[:position].count(k) for k in range(3)) == mix.taken(position)
    blocks = {tuple(given[k * BLOCK : (k + 1) * BLOCK]) for k in range(4)}
    assert len(blocks) == 4
    assert given != [owner(order(seed=2)[position]) for position in range(4 * BLOCK)]


@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 1.0, 1.0), (0.001, 5.0, 0.3)])
def test_each_set_has_its_own_epochs_whatever_the_others_are(weights):
    mix = order(weights=weights)
    stream = [mix[position] for position in range(40 * BLOCK)]
    alone = MixOrder(NAMES[1:2], COUNTS[1:2], (9.0,), 1)
    for k, count in enumerate(COUNTS):
        own = [index for index in stream if owner(index) == k]
        for epoch in range(len(own) // count):
            assert len(set(own[epoch * count : (epoch + 1) * count])) == count
        if k == 1:
            assert [index - 5 for index in own] == [alone[position] for position in range(len(own))]


def test_any_position_can_be_asked_first():
    stream = [order()[position] for position in range(200)]
    mix = order()
    assert [mix[position] for position in reversed(range(200))] == stream[::-1]


def test_new_weights_go_on_where_each_set_was():
    before = order()
    taken = before.taken(100)
    after = order(weights=(1.0, 1.0, 5.0), origin=Origin(100, taken))
    assert after.taken(100) == taken
    stream = [before[p] for p in range(BLOCK)] + [after[p] for p in range(100, 100 + 3 * BLOCK)]
    later = [index - 8 for index in stream[BLOCK:] if owner(index) == 2]
    orders = ClipOrder(COUNTS[2], order()._orders[2].seed)
    assert later == [orders[taken[2] + n] for n in range(len(later))]


@pytest.fixture(scope="module")
def sets(made_clips, tmp_path_factory) -> tuple[LatentDataset, LatentDataset]:
    """Two sets of clips: one in memory, one read from the cache."""
    from data_pipeline.conftest import CLIP

    from mova_engine.codecs import build_audio_codec, build_text_encoder
    from mova_engine.data.latent_cache import LatentCache

    text = build_text_encoder("bytes", tokens=8, dim=16)
    cache = LatentCache(tmp_path_factory.mktemp("cache"), CLIP, None, build_audio_codec("mdct"), text)
    whole = open_dataset(made_clips, cache)
    return LatentDataset(whole.entries[:3], cache), LatentDataset(whole.entries[3:], cache, preload=False)


def mixed(sets, first: float = 1.0, second: float = 3.0, names=("few", "many")) -> MixedClips:
    return MixedClips([MixedSet(names[0], first, sets[0]), MixedSet(names[1], second, sets[1])])


def loader(clips: MixedClips, batch: int = 4, **options) -> MixedLoader:
    return MixedLoader(clips, batch, **{"seed": 1, "rank": 0, "world": 1, "workers": 0, "rounds": None, **options})


def ids(batches, count: int) -> list[str]:
    return [name for batch in islice(batches, count) for name in batch["id"]]


def test_a_batch_puts_the_clips_of_its_sets_together_in_order(sets):
    clips = mixed(sets)
    assert len(clips) == COUNT and not clips.in_memory
    indices = [5, 0, 3, 2, 3]
    batch, stored = clips.batch(indices), clips.stored_batch(indices)
    assert stored is not None
    assert batch["id"] == [clips.ids[i] for i in indices]
    assert batch["id"] == ["many/5.mp4", "few/0.mp4", "many/3.mp4", "few/2.mp4", "many/3.mp4"]
    for row, index in enumerate(indices):
        one = clips[index]
        part = sets[0][index] if index < 3 else sets[1][index - 3]
        assert batch["caption"][row] == part["caption"]
        for name in ("audio_latents", "text", "heard"):
            assert torch.equal(batch[name][row], part[name]) and torch.equal(one[name], part[name])
            assert torch.equal(stored[name][row], part[name])


def test_ranks_workers_and_a_resumed_loader_share_one_stream(sets):
    clips = mixed(sets)
    whole = ids(loader(clips), 12)
    assert sum(name.startswith("few/") for name in whole) == 12
    ranks = [iter(loader(clips, 2, rank=rank, world=2)) for rank in (0, 1)]
    assert [name for _ in range(12) for rank in ranks for name in ids(rank, 1)] == whole
    worked = loader(clips, workers=1)
    assert ids(worked, 5) == whole[:20]
    state = json.loads(json.dumps(worked.state_dict()))
    resumed = loader(mixed(sets), 2)
    assert resumed.load_state_dict(state) == []
    assert ids(resumed, 14) == whole[20:]
    assert resumed.position == 48 and resumed.epochs == {"few": 4, "many": 9} and resumed.epoch == 4


def test_another_mix_stops_or_goes_on_as_asked(sets):
    before = loader(mixed(sets))
    whole = ids(before, 10)
    state = json.loads(json.dumps(before.state_dict()))
    heavier = loader(mixed(sets, first=3.0))
    with pytest.raises(MovaError, match=r"few weighs 3, not 1.*--loader.changed go-on"):
        heavier.load_state_dict(state)
    [note] = heavier.load_state_dict(state, "go-on")
    assert "few weighs 3, not 1" in note
    # Each set goes on where it was: what the present stream gives of it follows what it gave.
    more = ids(heavier, 10)
    plain = [name for name in ids(loader(mixed(sets)), 60) if name.startswith("few/")]
    given = [name for name in whole + more if name.startswith("few/")]
    assert given == plain[: len(given)] and len(given) > 20
    # And a checkpoint of the changed run resumes exactly.
    again = loader(mixed(sets, first=3.0))
    assert again.load_state_dict(json.loads(json.dumps(heavier.state_dict()))) == []
    assert ids(again, 3) == ids(heavier, 3)


def test_a_set_that_is_new_gone_or_changed_is_named(sets):
    state = loader(mixed(sets)).state_dict()
    other = loader(mixed((sets[0], LatentDataset(sets[1].entries[1:], sets[1].cache)), names=("new", "many")))
    with pytest.raises(MovaError, match="few is gone; new is new, 3 clips; many has other clips, 4 then, 3 now"):
        other.load_state_dict(state)
    with pytest.raises(MovaError, match="drawn from seed 1, not 2: give --seed 1"):
        loader(mixed(sets), seed=2).load_state_dict(state)
    with pytest.raises(MovaError, match="is of a run on a mix, not on one folder: give --mix"):
        build_loader(sets[0], 2, seed=1).load_state_dict(state)
    with pytest.raises(MovaError, match="is of a run on one folder"):
        loader(mixed(sets)).load_state_dict({"position": 3, "seed": 1, "clips": 3, "digest": "x"})
    with pytest.raises(MovaError, match="two sets of a mix have one name"):
        mixed(sets, names=("few", "few"))


def test_folders_are_named_by_what_tells_them_apart():
    mix = parse_mix(["a/music/train:2", "b/speech/train:0.5", "effects", "odd:name"])
    assert [(str(each.path), each.weight, each.name) for each in mix] == [
        ("a/music/train", 2.0, "music/train"),
        ("b/speech/train", 0.5, "speech/train"),
        ("effects", 1.0, "effects"),
        ("odd:name", 1.0, "odd:name"),
    ]


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        (("a:0",), "the weight of a must be a positive number, got 0; leave out what is not wanted"),
        (("a:0", "b:0"), "the weight of a must be a positive number"),
        (("a:-1", "b"), "got -1"),
        (("a:nan",), "got nan"),
        (("a:inf", "b"), "got inf"),
        (("a:1", "b", "a:2"), "mix names a twice: give it one weight"),
        (("a:1", "x/../a"), "mix names x/../a twice, also as a: give it one weight"),
        (("a:1e308", "b:1e308"), r"the weight of a must be a positive number, got 1e\+308"),
        (("a:1e-320", "b"), "the weight of a must be a positive number, got "),
        (("",), "'' names no folder"),
    ],
)
def test_weights_that_no_mix_can_have_are_refused(mix, says):
    with pytest.raises(MovaError, match=says):
        load_config("nano", mix=mix)
    assert "\n" not in says


def test_a_mix_takes_the_place_of_data():
    with pytest.raises(MovaError, match="--data and --mix both say what to train on"):
        load_config("nano", mix=("a", "b"), data="c")
