"""Settings, versions and data that must be equal on all ranks, compared before the first step.

Each process reads its command line, the clips and the checkpoints itself. If a setting differs on one machine, or if
one process could not read a file, processes that share a clip would silently work on different clips.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mova_engine.checkpoints.folder import Codecs
from mova_engine.config.command import to_plain
from mova_engine.config.train import TrainConfig
from mova_engine.data.dataset import MARKED, LatentDataset
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.train.training_state import differences

# How many differences an error message lists.
SHOWN = 3


def agree_on_settings(config: TrainConfig, processes: Processes) -> None:
    """Raise MovaError in all processes if settings that affect the training differ between them. Paths may differ."""
    settings = to_plain(config)
    _compare(processes, settings, settings, _different_settings)


def agree_on_checkpoint(folder: Path | None, processes: Processes) -> None:
    """Raise MovaError in all processes unless all resume from the same checkpoint, or all start a new run."""
    name = None if folder is None else folder.name
    _compare(processes, name, name, _different_checkpoints)


def agree_on_data(codecs: Codecs, clips: LatentDataset, heldout: LatentDataset | None, processes: Processes) -> None:
    """Raise MovaError in all processes if the codecs or the usable clips differ between them."""
    for data, what in ((clips, "clips"), (heldout, "held-out clips")):
        taken = None if data is None else (data.order_digest(), data.in_memory, sorted(data.left_out))
        # The ids of long lists are not exchanged.
        ids = () if data is None or len(data) > MARKED else data.ids
        details = None if data is None else (ids, data.in_memory, data.left_out)
        _compare(processes, taken, details, partial(_different_clips, what))
    # After the clips, which codecs are fitted to.
    prints = [None if codec is None else codec.fingerprint() for codec in codecs]
    _compare(processes, prints, prints, _different_codecs)


def _compare(processes: Processes, value: Any, details: Any, explain: Callable[[Sequence[Any]], str | None]) -> None:
    """If `value` differs between processes, raise MovaError with the message that `explain` makes of all processes'
    `details`; no error if that is None.

    Digests are compared first: values may be long, and seldom differ.
    """
    if processes.launch.world == 1:
        return
    digest = hashlib.sha256(repr(value).encode()).hexdigest()
    if (
        len(set(processes.all_gather_object(digest))) > 1
        and (message := explain(processes.all_gather_object(details))) is not None
    ):
        raise MovaError(message)


def _different_settings(every: Sequence[Mapping[str, Any]]) -> str | None:
    for rank, theirs in enumerate(every):
        found = differences(every[0], theirs)
        if found:
            shown = "; ".join(found[:SHOWN]) + ("; ..." if len(found) > SHOWN else "")
            return f"rank {rank} was started with other settings than rank 0: {shown}; give all processes the same"
    return None


def _different_checkpoints(every: Sequence[str | None]) -> str:
    rank = next(rank for rank, theirs in enumerate(every) if theirs != every[0])
    found = [f"rank {n} {f'from {every[n]}' if every[n] else 'anew'}" for n in (0, rank)]
    return f"the processes would not start alike: {' and '.join(found)}; all of them must see the same run folder"


def _different_codecs(every: Sequence[Sequence[str | None]]) -> str:
    ranks = [rank for rank, theirs in enumerate(every) if theirs != every[0]]
    return (
        f"{_ranks(ranks)} fitted or read other codecs than rank 0: start again if a file could not be read for a "
        "moment, or look at the clips and model folders from that machine"
    )


# The clips' ids in order (none of a long list), whether they are in memory, id -> reason of those left out; None: no
# clips of this kind.
_ClipDetails = tuple[tuple[str, ...], bool, dict[str, str]] | None


def _different_clips(what: str, every: Sequence[_ClipDetails]) -> str:
    remedy = "start again if a file could not be read for a moment, or look at the files from that machine"
    listed = [set() if found is None else set(found[0]) for found in every]
    lost = [{} if found is None else found[2] for found in every]
    # Of long lists only the clips that were left out are known.
    held = [
        ids - out.keys() if ids or None in every else set[str]().union(*lost) - out.keys()
        for ids, out in zip(listed, lost, strict=True)
    ]
    lacking = [
        f"'{name}' only in {_ranks([rank for rank, ids in enumerate(held) if name in ids])}{_why(name, every)}"
        for name in sorted(set.union(*held) - set.intersection(*held))
    ]
    if not lacking:
        first = every[0]
        ranks = [n for n, theirs in enumerate(every) if theirs is None or first is None or theirs[:2] != first[:2]]
        return f"{what}: {_ranks(ranks)} would take them in another order or way than rank 0; {remedy}"
    shown = ", ".join(lacking[:SHOWN]) + (", ..." if len(lacking) > SHOWN else "")
    return f"the processes do not agree on the {what}: {shown}; {remedy}"


def _why(name: str, every: Sequence[_ClipDetails]) -> str:
    reason = next((f"rank {n}: {found[2][name]}" for n, found in enumerate(every) if found and name in found[2]), None)
    return "" if reason is None else f" ({reason})"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
