"""The loader: an endless, shuffled stream of clips that can be resumed at any clip.

All ranks read the same stream, in which every clip occurs once per epoch, in an order drawn from (seed, epoch). The
stream is a function of the position in it, for any number of workers: only the position has to be saved.
"""

import gc
import multiprocessing
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mova_engine.data.clip_changes import Changes, compare
from mova_engine.data.dataset import LatentDataset
from mova_engine.data.helper_signals import stop_signals_held
from mova_engine.data.permutation import Permutation
from mova_engine.distributed.rounds import Rounds
from mova_engine.errors import MovaError

# Batches that each worker prepares ahead.
PREFETCH = 2
# How the order of clips is drawn, see `ClipOrder`; the number of clips from which on it is a function; for how many
# positions it is computed at once.
ARRAY, FUNCTION = 1, 2
FUNCTION_FROM = 1 << 20
BLOCK = 4096
Changed = Literal["stop", "go-on"]


class ClipOrder:
    """The stream of clip indices, by position: in each epoch a permutation of `count` clips (0, 1, ... unshuffled).

    version: how it is drawn. ARRAY: by shuffling an array. FUNCTION: by `data.permutation`, without an array. A run
    keeps the one that it began with. Default: FUNCTION from FUNCTION_FROM clips on.
    """

    def __init__(self, count: int, seed: int, *, shuffle: bool = True, version: int | None = None) -> None:
        self.count, self.seed, self.shuffle = count, seed, shuffle
        self.version = version or (ARRAY if count < FUNCTION_FROM else FUNCTION)
        if self.version not in (ARRAY, FUNCTION):
            raise MovaError(f"the checkpoint's order of clips is of a newer kind ({version}): update the engine")
        # The block of positions that `_block` holds: (epoch, first place).
        self._known: tuple[int, int] | None = None
        self._block = np.empty(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if not self.shuffle:
            return place
        size = self.count if self.version == ARRAY else BLOCK
        first = place - place % size
        if self._known != (epoch, first):
            self._block = self._array(epoch) if self.version == ARRAY else self._drawn(epoch, first)
            self._known = epoch, first
        return int(self._block[place - first])

    def _array(self, epoch: int) -> np.ndarray:
        order = np.arange(self.count)
        np.random.default_rng((self.seed, epoch)).shuffle(order)
        return order

    def _drawn(self, epoch: int, first: int) -> np.ndarray:
        places = np.arange(first, min(first + BLOCK, self.count))
        return Permutation(self.count, self.seed, epoch)(places)


class Loader:
    """An endless iterable of batches, which continues after the last batch that was taken. Built by `build_loader`."""

    def __init__(
        self,
        dataset: LatentDataset,
        batch_size: int,
        *,
        seed: int,
        rank: int,
        world: int,
        workers: int,
        shuffle: bool,
        rounds: Rounds | None,
    ) -> None:
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers
        self.rank, self.world, self.rounds = rank, world, rounds
        self._order = ClipOrder(len(dataset), seed, shuffle=shuffle)
        self._position = 0
        # Computed now, because files may change later.
        self._marks = dataset.marks
        self._digest = dataset.order_digest(shuffle)

    @property
    def position(self) -> int:
        """The number of clips that all ranks together have taken."""
        return self._position

    @property
    def epoch(self) -> int:
        """The number of complete epochs."""
        return self._position // len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches as of `LatentDataset.batch`. The position advances when a batch is taken, not when it is
        prepared.
        """
        for batch in self.ahead():
            self.count()
            yield batch

    def ahead(self) -> Iterator[dict[str, Any]]:
        """As `iter`, but the position stays: for who prepares batches ahead and counts those that are used."""
        return self._made() if self.rounds is None else self.rounds.shared(self._made())

    def count(self) -> None:
        """Advance the position by one batch of each rank."""
        self._position += self.batch_size * self.world

    def state_dict(self) -> dict[str, Any]:
        """The position, and what identifies the stream, as plain values for JSON. Independent of the number of workers
        and ranks and of the batch size.
        """
        state = {
            "position": self._position,
            "seed": self._order.seed,
            "clips": len(self.dataset),
            "digest": self._digest,
            "order": self._order.version,
        }
        # Of long lists one digest takes the place of the clips' marks.
        long = {"contents": self.dataset.content_digest}
        return state | (long if self._marks is None else {"marks": self._marks})

    def load_state_dict(self, state: dict[str, Any], changed: Changed = "stop") -> list[str]:
        """Continue at the position of `state`, from the next `iter()`; returns messages about clips that have changed.

        changed: what to do if clips were added, removed or reordered, so that the stream is another one. "stop": raise
        MovaError. "go-on": continue at the start of the next epoch, with the present clips. Raises MovaError also if
        the seed differs, or if the state is of a mix.
        """
        if "turn" in state:
            raise MovaError("the checkpoint is of a run with buckets: give the same, or start a new run")
        if "sets" in state:
            raise MovaError("the checkpoint is of a run on a mix, not on one folder: give --mix, or start a new run")
        here = self.state_dict()
        if state["seed"] != here["seed"]:
            raise MovaError(
                f"the checkpoint's order of clips was drawn from seed {state['seed']}, not {here['seed']}: give --seed "
                f"{state['seed']}"
            )
        # Checkpoints from before there were several orders have the first.
        self._order = ClipOrder(
            len(self.dataset), state["seed"], shuffle=self._order.shuffle, version=state.get("order", ARRAY)
        )
        found = Changes("", "")
        if "marks" in state and self._marks is not None:
            found = compare(state["marks"], self._marks, self.dataset.entries)
        elif state["digest"] == here["digest"] and len({state.get("contents"), here.get("contents")} - {None}) > 1:
            found = Changes("", "captions or starts have changed")
        notes = [f"clips are not as in the checkpoint: {found.contents}"] if found.contents else []
        if state["digest"] == here["digest"]:
            self._position = state["position"]
            return notes
        self._order = ClipOrder(len(self.dataset), state["seed"], shuffle=self._order.shuffle)
        differ = f"the clips are not those of the checkpoint ({state['clips']} then, {here['clips']} now"
        differ += f": {found.order})" if found.order else ")"
        if changed == "stop":
            raise MovaError(
                f"{differ}: its order cannot continue exactly; restore them, or give --loader.changed go-on to train "
                "on with the present ones, or --model.checkpoint and another --out to start a run from its weights"
            )
        epoch = -(-state["position"] // state["clips"])
        self._position = epoch * len(self.dataset)
        return [f"{differ}: continuing with the present ones at the beginning of epoch {epoch + 1}", *notes]

    def _made(self) -> Iterator[dict[str, Any]]:
        """The batches that this process reads or encodes itself. Workers are started now."""
        indices = _Indices(self)
        if self.workers == 0:
            return map(self.dataset.batch, indices)
        # Unreachable objects of the media library may own threads. A forked process does not have these threads, and
        # would wait for them forever when it frees such an object. Therefore free them before the fork.
        gc.collect()
        prepared = DataLoader(
            _StoredBatches(self.dataset),
            batch_size=None,
            sampler=indices,
            num_workers=self.workers,
            prefetch_factor=PREFETCH,
            collate_fn=_unchanged,
            worker_init_fn=_spare_inherited_objects,
            # A separate generator, so that starting the workers does not change the trainer's random numbers.
            generator=torch.Generator(),
        )
        others = set(multiprocessing.active_children())
        with stop_signals_held():
            batches = iter(prepared)
        return self._from_workers(batches, set(multiprocessing.active_children()) - others)

    def _from_workers(self, batches: Iterator[Any], workers: set[Any]) -> Iterator[dict[str, Any]]:
        try:
            for batch in batches:
                yield self.dataset.batch(batch) if isinstance(batch, list) else batch
        finally:
            del batches  # asks the workers to end, and waits some seconds
            for worker in workers:
                if worker.is_alive():
                    worker.kill()


class _Indices(Sampler):
    """This rank's index lists, one for each batch, from the loader's position on."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        every = self._every()
        return every if self.loader.rounds is None else self.loader.rounds.own(every)

    def _every(self) -> Iterator[list[int]]:
        loader = self.loader
        first = loader.position + loader.rank * loader.batch_size
        while True:
            yield [loader._order[first + i] for i in range(loader.batch_size)]
            first += loader.batch_size * loader.world


class _StoredBatches(Dataset):
    """Batches as workers read them; the indices come back where it takes the codecs, which this process has."""

    def __init__(self, dataset: LatentDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> dict[str, Any] | list[int]:
        return self.dataset.stored_batch(indices) or indices


def _unchanged(batch: Any) -> Any:
    return batch


def _spare_inherited_objects(worker: int) -> None:
    gc.freeze()


def build_loader(
    dataset: LatentDataset,
    batch_size: int,
    *,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    shuffle: bool = True,
    rounds: Rounds | None = None,
) -> Loader:
    """Return a loader of batches of `batch_size` clips for data-parallel rank `rank` of `world`.

    Batches of all ranks follow each other in one stream, so that no clip is given twice in an epoch, and none is left
    out; a batch may reach over the end of an epoch. workers: processes that read clips; 0 reads in this one, and so
    does a dataset in memory, which has nothing to wait for. rounds: the processes that are given the same batches, and
    read and encode each of them once; from memory each takes its own. Raises MovaError for sizes that make no sense.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("world", world, 1), ("workers", workers, 0)):
        if value < least:
            raise MovaError(f"{name} must be at least {least}, got {value}")
    if not 0 <= rank < world:
        raise MovaError(f"rank must be between 0 and {world - 1}, got {rank}")
    workers = 0 if dataset.in_memory else workers
    rounds = None if dataset.in_memory else rounds
    return Loader(
        dataset, batch_size, seed=seed, rank=rank, world=world, workers=workers, shuffle=shuffle, rounds=rounds
    )
