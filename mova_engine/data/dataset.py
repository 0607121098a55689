"""The training dataset: latents and text features of clips, from the cache or from memory.

Clips that cannot be used are found before training: `open_dataset` reads every clip.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mova_engine.data.clip_changes import marks
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.metadata import Entry, read_metadata
from mova_engine.errors import MovaError

log = logging.getLogger(__name__)

BadClips = Literal["skip", "stop"]
# A dataset whose tensors take fewer bytes is kept in memory by default.
PRELOAD_BYTES = 2 << 30
# How many reasons an error message lists if clips cannot be used.
SHOWN_REASONS = 3


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
        self.entries, self.cache, self.bad_clips = tuple(entries), cache, bad_clips
        self._files_read = read
        self._captions = [entry.caption for entry in entries]
        self._ids = [entry.id for entry in entries]
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
        return {**tensors, "caption": self._captions[index], "id": self._ids[index]}

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
        return {**tensors, "caption": [self._captions[i] for i in chosen], "id": [self._ids[i] for i in chosen]}

    def stored_batch(self, indices: Sequence[int]) -> dict[str, Any] | None:
        """As `batch`, but None if a clip would have to be encoded or replaced; for worker processes without codecs."""
        read = [self.cache.read(self.entries[index]) for index in indices]
        clips = [clip for clip in read if clip is not None]
        if len(clips) < len(read):
            return None
        return {**_stack(clips), "caption": [self._captions[i] for i in indices], "id": [self._ids[i] for i in indices]}

    @cached_property
    def marks(self) -> str:
        """The fingerprint of these clips, by which a resumed run finds changes, see `data.clip_changes`."""
        return marks(self.entries, self.cache.content if self._files_read else None)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the clips, by index."""
        return tuple(self._ids)

    @property
    def left_out(self) -> dict[str, str]:
        """Id -> reason, of the folder's clips that are known to be unusable."""
        return {**self._left_out, **{self.entries[index].id: reason for index, reason in self._unusable.items()}}

    @property
    def in_memory(self) -> bool:
        """Whether all tensors are kept in memory."""
        return self._tensors is not None

    def _read(self, index: int) -> tuple[int, dict[str, Tensor]]:
        """Return (index, tensors) of the clip at `index`, or of the next clip that can be used."""
        if self._tensors is not None:
            return index, {name: x[index] for name, x in self._tensors.items()}
        for tried in range(len(self)):
            chosen = (index + tried) % len(self)
            if chosen in self._unusable:
                continue
            try:
                return chosen, self.cache.get(self.entries[chosen])
            except MovaError as error:
                if self.bad_clips == "stop":
                    raise
                log.warning("clip '%s' cannot be used, the next takes its place: %s", self._ids[chosen], error)
                self._unusable[chosen] = str(error)
        shown = "; ".join(list(self._unusable.values())[:SHOWN_REASONS])
        raise MovaError(f"none of the {len(self)} clips can be used: {shown}")

    def _preload(self) -> None:
        tensors: dict[str, Tensor] = {}
        for row in range(len(self)):
            index, clip = self._read(row)
            for name, x in clip.items():
                tensors.setdefault(name, x.new_empty(len(self), *x.shape))[row] = x
            self._captions[row], self._ids[row] = self._captions[index], self._ids[index]
        self._tensors = tensors


def _stack(clips: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}


def open_dataset(
    folder: str | Path,
    cache: LatentCache,
    *,
    bad_clips: BadClips = "skip",
    preload: bool | None = None,
    rank: int = 0,
    world: int = 1,
    ahead: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> LatentDataset:
    """Read a folder's metadata, encode the clips that are missing in the cache, and return the usable clips.

    Clips that are missing, damaged, silent or too short are logged. With bad_clips "skip" they are left out; with
    "stop" a MovaError counts them and names the first ones. If no clip is usable, MovaError is raised in both cases.
    rank, world: of `world` processes that share the cache, each starts encoding at a different clip; all return the
    same dataset. ahead=False: clips are encoded when they are first used, and unusable ones are found then.
    progress: called with the number of clips done. For the other arguments see `LatentDataset`.
    """
    entries = read_metadata(folder)
    if rank == 0 and (otherwise := cache.stored_otherwise(entries)) is not None:
        log.warning("%s; they are encoded anew", otherwise)
    if not ahead:
        return LatentDataset(entries, cache, bad_clips=bad_clips, preload=bool(preload))
    first = len(entries) * rank // world
    reasons = {problem.entry.id: problem.reason for problem in cache.fill(entries[first:] + entries[:first], progress)}
    usable = [entry for entry in entries if entry.id not in reasons]
    bad = [entry for entry in entries if entry.id in reasons]
    for entry in bad:
        log.warning("clip '%s' cannot be used: %s", entry.id, reasons[entry.id])
    if bad:
        summary = f"{folder}: {len(bad)} of {len(entries)} clips cannot be used"
        if bad_clips == "stop" or not usable:
            shown = "; ".join(reasons[entry.id] for entry in bad[:SHOWN_REASONS])
            raise MovaError(f"{summary}: {shown}{'; ...' if len(bad) > SHOWN_REASONS else ''}")
        log.warning("%s and are left out", summary)
    dataset = LatentDataset(usable, cache, bad_clips=bad_clips, preload=preload, read=True)
    dataset._left_out = reasons
    return dataset
