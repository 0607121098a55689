"""Several sets of clips mixed by weight: one endless stream, in which each set is shuffled and counted by itself.

The stream consists of blocks of BLOCK clips. Of the p clips before a block, set k has given n_k: the apportionment of p
by the weights w_k after Sainte-Lague (Webster), in which the clip j of a set, from 0, has its place at (j + 1/2) / w_k
and the places are taken in their order. Shares are therefore exact to a clip or two, not by chance. Within a block the
sets are shuffled. What a set gives is its own shuffled order, epoch after epoch, which no other set and no weight
changes. The stream is a function of the position in it.

Buckets are mixed in the same way, by their numbers of clips, but in turns of as many clips as an optimizer step takes:
all clips of a step are then of one bucket. A turn may reach over the end of its bucket's epoch.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mova_engine.data.clip_changes import compare, order_digest
from mova_engine.data.clip_sources import JoinedClips
from mova_engine.data.dataset import LatentDataset
from mova_engine.data.loader import Changed, ClipOrder, Loader
from mova_engine.errors import MovaError, counted

# Turns, mostly of one clip, whose order is shuffled among the sets.
BLOCK = 64
# Tells the mix's random numbers from those of other orders that are drawn from the same seed.
_SALT = 0x6D6978


class MixedSet(NamedTuple):
    """A set of a mix. name: differs from those of the others. weight: positive."""

    name: str
    weight: float
    clips: LatentDataset


class Origin(NamedTuple):
    """Where the present weights began to hold: at which position, and how many clips each set had given by then."""

    position: int
    taken: tuple[int, ...]


class MixOrder:
    """The stream of a mix, by position: indices into the sets laid one after another.

    counts, weights, names: of the sets. seed: of the shuffling. versions: of each set's order, see `ClipOrder`. turn:
    how many clips of a set follow each other.
    """

    def __init__(
        self,
        names: Sequence[str],
        counts: Sequence[int],
        weights: Sequence[float],
        seed: int,
        *,
        shuffle: bool = True,
        origin: Origin | None = None,
        versions: Sequence[int | None] | None = None,
        turn: int = 1,
    ) -> None:
        self.seed, self.shuffle, self.counts, self.turn = seed, shuffle, tuple(counts), turn
        self.weights = tuple(weight / math.fsum(weights) for weight in weights)
        self.origin = origin or Origin(0, (0,) * len(names))
        self._orders = [
            ClipOrder(count, _own_seed(seed, name), shuffle=shuffle, version=version)
            for name, count, version in zip(names, counts, versions or [None] * len(names), strict=True)
        ]
        self._first = [0, *accumulate(counts)][:-1]
        self._block, self._indices = -1, list[int]()

    @property
    def versions(self) -> tuple[int, ...]:
        """How each set's order is drawn."""
        return tuple(each.version for each in self._orders)

    def taken(self, position: int) -> tuple[int, ...]:
        """How many clips each set has given before `position`."""
        block, place = divmod(position - self.origin.position, BLOCK * self.turn)
        sets = np.repeat(self._sets(block), self.turn)[:place] if place else np.empty(0, np.int64)
        return tuple((self._before(block) + np.bincount(sets, minlength=len(self.counts))).tolist())

    def __getitem__(self, position: int) -> int:
        block, place = divmod(position - self.origin.position, BLOCK * self.turn)
        if block != self._block:
            self._indices, self._block = self._of_block(block), block
        return self._indices[place]

    def _before(self, block: int) -> np.ndarray:
        """How many clips each set has given before a block, int64 [sets]."""
        return np.array(self.origin.taken) + self.turn * np.array(apportioned(block * BLOCK, self.weights))

    def _sets(self, block: int) -> np.ndarray:
        """The set of each turn of a block, int64 [BLOCK]."""
        turns = (self._before(block + 1) - self._before(block)) // self.turn
        sets = np.repeat(np.arange(len(self.counts)), turns)
        if self.shuffle:
            np.random.default_rng((self.seed, _SALT, self.origin.position, block)).shuffle(sets)
        return sets

    def _of_block(self, block: int) -> list[int]:
        given, indices = self._before(block).tolist(), list[int]()
        for chosen in self._sets(block).tolist():
            own, first = self._orders[chosen], given[chosen]
            indices += [self._first[chosen] + own[place] for place in range(first, first + self.turn)]
            given[chosen] += self.turn
        return indices


def _own_seed(seed: int, name: str) -> int:
    """A set's own seed: its order must depend neither on its place among the sets nor on the others."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "little")


def apportioned(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """`total` clips apportioned by weights that add up to 1: the first `total` of the places (j + 1/2) / w."""
    # A set has at most (1 + number of sets) / 2 clips fewer than its exact share, so that it is begun with fewer.
    less = (1 + len(weights)) / 2
    given = [max(0, math.floor(total * weight - less)) for weight in weights]
    for _ in range(total - sum(given)):
        places = [(count + 0.5) / weight for count, weight in zip(given, weights, strict=True)]
        given[places.index(min(places))] += 1
    return tuple(given)


class MixedClips(LatentDataset):
    """The sets of a mix as one data set, laid one after another; ids and entries have their set's name before them.

    Raises MovaError if there are none, or for two of one name.
    """

    # What messages call this, and what a checkpoint is that has none.
    WORD = "mix"
    WITHOUT = "of a run on one folder, not on a mix: give --data, or start a new run"

    def __init__(self, sets: Sequence[MixedSet]) -> None:
        if not sets:
            raise MovaError("a mix holds no sets of clips")
        if len({each.name for each in sets}) < len(sets):
            raise MovaError(f"two sets of a mix have one name: {', '.join(each.name for each in sets)}")
        self.sets = tuple(sets)
        self.entries = JoinedClips([(each.name, each.clips.entries) for each in sets])
        # That of the first set; all have the same codecs.
        self.cache = sets[0].clips.cache
        self._last = list(accumulate(len(each.clips) for each in sets))

    def __len__(self) -> int:
        return self._last[-1]

    def set_of(self, index: int) -> MixedSet:
        """The set of a clip."""
        return self.sets[bisect_right(self._last, index)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One clip: the entries of `batch`, without the batch dimension."""
        return {name: value[0] for name, value in self.batch([index]).items()}

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{each.name}/{name}" for each in self.sets for name in each.clips.ids)

    @property
    def left_out(self) -> dict[str, str]:
        found = ((each.name, *pair) for each in self.sets for pair in each.clips.left_out.items())
        return {f"{name}/{clip}": reason for name, clip, reason in found}

    @cached_property
    def marks(self) -> str | None:
        """None of its own: each set has them, in the loader's state."""
        return None

    @property
    def content_digest(self) -> str | None:
        return None

    def order_digest(self, shuffle: bool = True) -> str:
        """The digest of the sets' digests, names and weights."""
        return order_digest((f"{x.name} {x.weight!r} {x.clips.order_digest(shuffle)}" for x in self.sets), shuffle)

    @property
    def words(self) -> str:
        """Its sets and their shares: "music 120 clips (50.0 %), speech 40 clips (50.0 %)"."""
        whole = math.fsum(each.weight for each in self.sets)
        shares = [(each.name, counted(len(each.clips), "clip"), 100 * each.weight / whole) for each in self.sets]
        return ", ".join(f"{name} {clips} ({share:.1f} %)" for name, clips, share in shares)

    @property
    def in_memory(self) -> bool:
        return all(each.clips.in_memory for each in self.sets)

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        found = self._gathered(indices, stored=False)
        assert found is not None, "clips that are not stored are encoded"
        return found

    def stored_batch(self, indices: Sequence[int]) -> dict[str, Any] | None:
        return self._gathered(indices, stored=True)

    def _gathered(self, indices: Sequence[int], stored: bool) -> dict[str, Any] | None:
        """Each set's clips as its own batch, put together in the order of `indices`."""
        places = np.searchsorted(self._last, np.asarray(indices), side="right")
        parts: list[dict[str, Any]] = []
        order: list[int] = []
        for number, each in enumerate(self.sets):
            own = np.flatnonzero(places == number).tolist()
            if not own:
                continue
            first = self._last[number] - len(each.clips)
            chosen = [indices[place] - first for place in own]
            part = each.clips.stored_batch(chosen) if stored else each.clips.batch(chosen)
            if part is None:
                return None
            parts.append({**part, "id": [f"{each.name}/{name}" for name in part["id"]]})
            order += own
        back = np.argsort(order).tolist()
        return {name: _joined([part[name] for part in parts], back) for name in parts[0]}


def _joined(values: Sequence[Any], order: Sequence[int]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values)).index_select(0, torch.as_tensor(order))
    together = [each for value in values for each in value]
    return [together[place] for place in order]


class MixedLoader(Loader):
    """The loader of a mix, or of buckets. Built by `train.clip_data.open_loader`; arguments as of `build_loader`. turn:
    of buckets, how many clips of one follow each other.
    """

    dataset: MixedClips

    def __init__(
        self,
        dataset: MixedClips,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        turn: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset, batch_size, seed=seed, shuffle=shuffle, **options)
        self._seed, self._shuffle, self._turn = seed, shuffle, turn
        # Computed now, because files may change later.
        self._of_sets = {each.name: _state_of(each) for each in dataset.sets}
        self._begin(None)

    def _begin(self, origin: Origin | None, versions: Sequence[int | None] | None = None) -> None:
        sets = self.dataset.sets
        self._order = MixOrder(
            [each.name for each in sets],
            [len(each.clips) for each in sets],
            [each.weight for each in sets],
            self._seed,
            shuffle=self._shuffle,
            origin=origin,
            versions=versions,
            turn=self._turn or 1,
        )

    @property
    def epoch(self) -> int:
        """The number of complete epochs of the set that has the fewest."""
        return min(self.epochs.values())

    @property
    def epochs(self) -> dict[str, int]:
        """The number of complete epochs of each set, by name."""
        taken = self._order.taken(self._position)
        return {each.name: n // len(each.clips) for each, n in zip(self.dataset.sets, taken, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """The position, and of each set what it is, its weight and how many clips it has given, as plain values."""
        order = self._order
        origin, taken = order.origin, order.taken(self._position)
        return {
            **({} if self._turn is None else {"turn": self._turn}),
            "position": self._position,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "began": origin.position,
            "names": list(self._of_sets),
            "sets": {
                name: {**facts, "taken": now, "began": before, "order": version}
                for (name, facts), now, before, version in zip(
                    self._of_sets.items(), taken, origin.taken, order.versions, strict=True
                )
            },
        }

    def load_state_dict(self, state: dict[str, Any], changed: Changed = "stop") -> list[str]:
        """Continue at the position of `state`; returns messages about what has changed.

        changed: what to do if sets, weights, turns or clips of a set are not those of `state`. "stop": raise MovaError.
        "go-on": continue with the present ones; a set whose clips are the same goes on where it was, one whose clips
        changed begins its next epoch, a new one its first. Raises MovaError also if the seed differs, or if the state
        is of a run without a mix.
        """
        if "sets" not in state:
            raise MovaError(f"the checkpoint is {self.dataset.WITHOUT}")
        if state["seed"] != self._seed:
            raise MovaError(
                f"the checkpoint's order of clips was drawn from seed {state['seed']}, not {self._seed}: give --seed "
                f"{state['seed']}"
            )
        # JSON may have lost the order of the sets, on which the stream depends.
        saved: dict[str, dict[str, Any]] = {name: state["sets"][name] for name in state.get("names", state["sets"])}
        differ = _differences(saved, self._of_sets)
        if (turn := state.get("turn")) != self._turn:
            now, then = (steps or "any number of" for steps in (self._turn, turn))
            differ.append(f"a step takes {now} clips, not {then}: give --global-batch-size")
        if not differ and list(saved) == list(self._of_sets):
            self._position = state["position"]
            origin = Origin(state["began"], tuple(facts["began"] for facts in saved.values()))
            self._begin(origin, [facts["order"] for facts in saved.values()])
            return [note for each in self.dataset.sets if (note := self._replaced(each, saved[each.name]))]
        if changed == "stop":
            raise MovaError(
                f"the {self.dataset.WORD} is not that of the checkpoint "
                f"({'; '.join(differ) or 'in another order'}): its order cannot continue exactly; give "
                "--loader.changed go-on to train on with the present one"
            )
        self._position = state["position"]
        found = [(saved.get(name), facts) for name, facts in self._of_sets.items()]
        same = [then if then is not None and then["digest"] == now["digest"] else None for then, now in found]
        origin = Origin(self._position, tuple(_goes_on(then, now) for then, now in found))
        self._begin(origin, [None if then is None else then["order"] for then in same])
        return [f"the {self.dataset.WORD} is not that of the checkpoint: {'; '.join(differ) or 'in another order'}"]

    def _replaced(self, each: MixedSet, saved: Mapping[str, Any]) -> str | None:
        """What changed in a set whose clips have the same names; None if nothing did."""
        now = self._of_sets[each.name]
        if saved["marks"] is not None and now["marks"] is not None:
            found = compare(saved["marks"], now["marks"], each.clips.entries).contents
        else:
            found = "" if saved["contents"] == now["contents"] else "captions or starts have changed"
        return f"clips of {each.name} are not as in the checkpoint: {found}" if found else None


def _state_of(each: MixedSet) -> dict[str, Any]:
    clips = each.clips
    contents = {"digest": clips.order_digest(), "marks": clips.marks, "contents": clips.content_digest}
    return {"weight": each.weight, "clips": len(clips), **contents}


def _goes_on(saved: Mapping[str, Any] | None, present: Mapping[str, Any]) -> int:
    """How many clips a set counts as having given."""
    if saved is None:
        return 0
    if saved["digest"] == present["digest"]:
        return int(saved["taken"])
    return -(-int(saved["taken"]) // int(saved["clips"])) * int(present["clips"])


def _differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """In words, what differs between the sets of a checkpoint and those that there are."""
    found = [f"{name} is gone" for name in saved if name not in present]
    for name, facts in present.items():
        if name not in saved:
            found.append(f"{name} is new, {counted(facts['clips'], 'clip')}")
        elif saved[name]["digest"] != facts["digest"]:
            found.append(f"{name} has other clips, {saved[name]['clips']} then, {facts['clips']} now")
        elif saved[name]["weight"] != facts["weight"]:
            found.append(f"{name} weighs {facts['weight']:g}, not {saved[name]['weight']:g}")
    return found
