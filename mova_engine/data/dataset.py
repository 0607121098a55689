"""The training dataset: latents and text features of clips, from the cache or from memory.

Clips that cannot be used are found before training: `open_dataset` reads every clip.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mova_engine.data.clip_changes import marks, order_digest
from mova_engine.data.clip_sources import JoinedClips, Sources, named
from mova_engine.data.clip_table import ClipTable, SomeClips, TableRows
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.metadata import Entry
from mova_engine.data.shard_files import FileInShard
from mova_engine.data.windows import list_clips
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file
from mova_engine.files.byte_ranges import UnreachableError

log = logging.getLogger(__name__)

BadClips = Literal["skip", "stop"]
# A dataset whose tensors take fewer bytes is kept in memory by default.
PRELOAD_BYTES = 2 << 30
# How many reasons an error message lists if clips cannot be used.
SHOWN_REASONS = 3
# Clips whose fingerprint is kept, 16 bytes each; of longer lists only digests of all together are.
MARKED = 100_000
# Clips in a row that cannot be used, after which the fault is not theirs.
IN_A_ROW = 100
# Clips of which `open_dataset` looks, before the first step, whether their files are there.
LOOKED_AT = 32


class NoUsableClipsError(MovaError):
    """None of the clips can be used."""


class LatentDataset(Dataset):
    """Clips of a cache, in the order of `entries`. Raises MovaError if there are none.

    bad_clips: what to do if a clip becomes unusable during training: "skip" logs a warning and uses the next clip in
    its place, "stop" raises MovaError.
    preload: keep all tensors in memory; None: if they take less than 2 GiB.
    read: whether all files have been read, so that their digests are known.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        cache: LatentCache,
        *,
        bad_clips: BadClips = "skip",
        preload: bool | None = None,
        read: bool = False,
    ) -> None:
        if not entries:
            raise MovaError("the dataset holds no clips")
        if bad_clips not in get_args(BadClips):
            raise MovaError(f"bad_clips must be 'skip' or 'stop', got '{bad_clips}'")
        self.entries = tuple(entries) if isinstance(entries, list) else entries
        self.cache, self.bad_clips = cache, bad_clips
        self._files_read = read
        # Row -> row of the clip that was read in its place, of tensors in memory.
        self._instead: dict[int, int] = {}
        self._tensors: dict[str, Tensor] | None = None
        # Index -> reason, of clips that became unusable during training; each is logged once and not tried again.
        self._unusable: dict[int, str] = {}
        # Id -> reason, of clips that `open_dataset` has left out.
        self._left_out: dict[str, str] = {}
        if preload is None:
            size = sum(x.numel() * x.element_size() for x in self._read(0)[1].values())
            preload = size * len(entries) <= PRELOAD_BYTES
        if preload:
            self._preload()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One clip: the entries of `batch`, without the batch dimension."""
        index, tensors = self._read(index)
        entry = self._entry(index)
        return {**tensors, "caption": entry.caption, "id": entry.id}

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The clips at `indices`, float32: video_latents and image_latents [b, 16, t, h, w] (not of sound alone),
        audio_latents [b, 128, l], heard [b, 1], text [b, n, d]; caption and id: lists of strings.
        """
        if self._tensors is not None:
            chosen, rows = list(indices), torch.as_tensor(indices)
            tensors = {name: x.index_select(0, rows) for name, x in self._tensors.items()}
        else:
            read = [self._read(index) for index in indices]
            chosen = [index for index, _ in read]
            tensors = _stack([clip for _, clip in read])
        return {**tensors, **self._names(chosen)}

    def stored_batch(self, indices: Sequence[int]) -> dict[str, Any] | None:
        """As `batch`, but None if a clip would have to be encoded or replaced; for worker processes without codecs."""
        read = [self.cache.read(self.entries[index]) for index in indices]
        clips = [clip for clip in read if clip is not None]
        if len(clips) < len(read):
            return None
        return {**_stack(clips), **self._names(indices)}

    @cached_property
    def marks(self) -> str | None:
        """The fingerprint of these clips, by which a resumed run finds changes, see `data.clip_changes`; None for more
        than MARKED clips.
        """
        if len(self) > MARKED:
            return None
        return marks(self.entries, self.cache.content if self._files_read else None)

    @property
    def content_digest(self) -> str | None:
        """The digest of all captions and starts; None where `marks` tells of each."""
        return self.entries.content_digest if isinstance(self.entries, ClipTable | TableRows | JoinedClips) else None

    def order_digest(self, shuffle: bool = True) -> str:
        """The digest of the clips' order, see `data.clip_changes.order_digest`; of lists in tables it is known."""
        known = None
        if isinstance(self.entries, ClipTable | TableRows | JoinedClips) and shuffle:
            known = self.entries.order_digest
        if known is not None:
            return known
        return order_digest((entry.id for entry in self.entries), shuffle)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the clips, by index."""
        return tuple(self._entry(index).id for index in range(len(self)))

    @property
    def left_out(self) -> dict[str, str]:
        """Id -> reason, of the folder's clips that are known to be unusable."""
        return {**self._left_out, **{self.entries[index].id: reason for index, reason in self._unusable.items()}}

    @property
    def in_memory(self) -> bool:
        """Whether all tensors are kept in memory."""
        return self._tensors is not None

    def _entry(self, index: int) -> Entry:
        """The clip whose tensors `index` stands for."""
        return self.entries[self._instead.get(index, index)]

    def _names(self, indices: Sequence[int]) -> dict[str, list[str]]:
        entries = [self._entry(index) for index in indices]
        return {"caption": [entry.caption for entry in entries], "id": [entry.id for entry in entries]}

    def _read(self, index: int) -> tuple[int, dict[str, Tensor]]:
        """Return (index, tensors) of the clip at `index`, or of the next clip that can be used."""
        if self._tensors is not None:
            return index, {name: x[index] for name, x in self._tensors.items()}
        for tried in range(min(len(self), IN_A_ROW)):
            chosen = (index + tried) % len(self)
            if chosen in self._unusable:
                continue
            try:
                return chosen, self.cache.get(self.entries[chosen])
            except UnreachableError:
                raise  # another clip in its place would make this process's stream another one
            except MovaError as error:
                if self.bad_clips == "stop":
                    raise
                self._note(chosen, str(error))
        shown = "; ".join(list(self._unusable.values())[:SHOWN_REASONS])
        if len(self) <= IN_A_ROW:
            raise MovaError(f"none of the {len(self)} clips can be used: {shown}")
        raise MovaError(f"{IN_A_ROW} clips in a row cannot be used, which is not their own fault: {shown}")

    def _note(self, row: int, reason: str) -> None:
        log.warning("clip '%s' cannot be used, the next takes its place: %s", self.entries[row].id, reason)
        self._unusable[row] = reason

    def _preload(self) -> None:
        tensors: dict[str, Tensor] = {}
        for row in range(len(self)):
            index, clip = self._read(row)
            for name, x in clip.items():
                tensors.setdefault(name, x.new_empty(len(self), *x.shape))[row] = x
            if index != row:
                self._instead[row] = index
        self._tensors = tensors


def _stack(clips: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}


def open_dataset(
    sources: Sources,
    cache: LatentCache,
    *,
    bad_clips: BadClips = "skip",
    preload: bool | None = None,
    rank: int = 0,
    world: int = 1,
    ahead: bool = True,
    cut_every: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatentDataset:
    """Read the list of clips, encode those that are missing in the cache, and return the usable clips.

    sources, cut_every: folders and manifests, and how their files are cut, see `list_clips`.

    Clips that are missing, damaged, silent or too short are logged. With bad_clips "skip" they are left out; with
    "stop" a MovaError counts them and names the first ones. If no clip is usable, MovaError is raised in both cases.
    rank, world: of `world` processes that share the cache, each starts encoding at a different clip; all return the
    same dataset. ahead=False: clips are encoded when they are first used, and unusable ones are found then; only
    whether their files are there is looked at before, of LOOKED_AT clips.
    progress: called with the number of clips done, and that of all. For the other arguments see `LatentDataset`.
    """
    entries = list_clips(sources, cache.folder, cache.clip, cut_every, cache.video_codec is not None)
    return open_entries(
        entries,
        cache,
        named(sources),
        bad_clips=bad_clips,
        preload=preload,
        rank=rank,
        world=world,
        ahead=ahead,
        progress=progress,
    )


def open_entries(
    entries: Sequence[Entry],
    cache: LatentCache,
    what: str,
    *,
    bad_clips: BadClips = "skip",
    preload: bool | None = None,
    rank: int = 0,
    world: int = 1,
    ahead: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatentDataset:
    """`open_dataset` of clips that are listed already. what: what messages call them."""
    if rank == 0 and (otherwise := cache.stored_otherwise(entries)) is not None:
        log.warning("%s; they are encoded anew", otherwise)
    if not ahead:
        missing = _not_there(entries, cache)
        if bad_clips == "stop" and missing:
            raise MovaError(f"{what}: clips cannot be used: {_first_of(list(missing.values()))}")
        dataset = LatentDataset(entries, cache, bad_clips=bad_clips, preload=False)
        for row, reason in missing.items():
            dataset._note(row, reason)
        if preload:
            dataset._preload()
        return dataset
    first = len(entries) * rank // world
    problems = cache.fill(_rotated(entries, first), lambda done: progress(done, len(entries)))
    reasons = {problem.entry.id: problem.reason for problem in problems}
    usable = _without(entries, reasons, bad_clips, what)
    dataset = LatentDataset(usable, cache, bad_clips=bad_clips, preload=preload, read=True)
    dataset._left_out = reasons
    return dataset


def _without(entries: Sequence[Entry], reasons: dict[str, str], bad_clips: BadClips, what: str) -> Sequence[Entry]:
    """The clips other than those whose ids are in `reasons`, which are told. Raises MovaError as `open_dataset`."""
    if not reasons:
        return entries
    bad = [row for row, entry in enumerate(entries) if entry.id in reasons]
    told = [reasons[entries[row].id] for row in bad]
    for row, reason in zip(bad, told, strict=True):
        log.warning("clip '%s' cannot be used: %s", entries[row].id, reason)
    summary = f"{what}: {len(bad)} of {len(entries)} clips cannot be used"
    if bad_clips == "stop" or len(bad) == len(entries):
        kind = MovaError if bad_clips == "stop" else NoUsableClipsError
        raise kind(f"{summary}: {_first_of(told)}")
    log.warning("%s and are left out", summary)
    kept = SomeClips(entries, np.delete(np.arange(len(entries)), bad))
    return list(kept) if isinstance(entries, list) else kept


def _rotated(entries: Sequence[Entry], first: int) -> Sequence[Entry]:
    """The clips from `first` on, then those before it."""
    return SomeClips(entries, np.roll(np.arange(len(entries)), -first)) if first else entries


def _first_of(reasons: Sequence[str]) -> str:
    return "; ".join(reasons[:SHOWN_REASONS]) + ("; ..." if len(reasons) > SHOWN_REASONS else "")


def _not_there(entries: Sequence[Entry], cache: LatentCache) -> dict[int, str]:
    """Row -> reason, of the clips whose files are not there, among LOOKED_AT or more that are spread over the list.
    Shards are not needed for clips that are encoded already.
    """
    reasons = {}
    for row in range(0, len(entries), max(1, len(entries) // LOOKED_AT)):
        entry = entries[row]
        try:
            if isinstance(entry.path, FileInShard):
                if not cache.holds(entry):
                    entry.path.check_place()
            else:
                require_file(entry.path)
        except UnreachableError:
            raise
        except MovaError as error:
            reasons[row] = str(error)
    return reasons
