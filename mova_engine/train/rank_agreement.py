"""Settings, versions and data that must be equal on all ranks, compared before the first step.

Each process reads its command line, the clips and the checkpoints itself. Another setting on one machine, or a file
that one of them could not read at that moment, would give processes that share a clip different ones, and none would
notice.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mova_engine.checkpoints.folder import Codecs
from mova_engine.config.command import to_plain
from mova_engine.config.train import TrainConfig
from mova_engine.data.dataset import LatentDataset
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.train.training_state import differences

# How many differences a refusal names.
SHOWN = 3


def agree_on_settings(config: TrainConfig, processes: Processes) -> None:
    """Raise MovaError in all processes where settings that change what is trained are not the same in all of them.

    Paths may differ.
    """
    settings = to_plain(config)
    _compare(processes, settings, settings, _different_settings)


def agree_on_checkpoint(folder: Path | None, processes: Processes) -> None:
    """Raise MovaError in all processes where they would not go on from the same checkpoint, or all start anew."""
    name = None if folder is None else folder.name
    _compare(processes, name, name, _different_checkpoints)


def agree_on_data(codecs: Codecs, clips: LatentDataset, heldout: LatentDataset | None, processes: Processes) -> None:
    """Raise MovaError in all processes where the codecs, or the clips that can be used, are not the same in all."""
    prints = [None if codec is None else codec.fingerprint() for codec in codecs]
    _compare(processes, prints, prints, _different_codecs)
    for data, what in ((clips, "clips"), (heldout, "held-out clips")):
        taken = None if data is None else (data.ids, data.in_memory)
        told = taken and (*taken, data.left_out)
        _compare(processes, taken, told, partial(_different_clips, what))


def _compare(processes: Processes, value: Any, told: Any, explain: Callable[[Sequence[Any]], str | None]) -> None:
    """Raise what `explain` makes of all processes' `told` where their values differ.

    Digests are compared: values may be long, and are hardly ever different.
    """
    if processes.launch.world == 1:
        return
    digest = hashlib.sha256(repr(value).encode()).hexdigest()
    if (
        len(set(processes.all_gather_object(digest))) > 1
        and (said := explain(processes.all_gather_object(told))) is not None
    ):
        raise MovaError(said)


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


# The clips' names in order, whether they are in memory, and why others are left out; None where there are none.
_Told = tuple[tuple[str, ...], bool, dict[str, str]] | None


def _different_clips(what: str, every: Sequence[_Told]) -> str:
    remedy = "start again if a file could not be read for a moment, or look at the files from that machine"
    held = [set() if found is None else set(found[0]) for found in every]
    lacking = [
        f"'{name}' only in {_ranks([rank for rank, ids in enumerate(held) if name in ids])}{_why(name, every)}"
        for name in sorted(set.union(*held) - set.intersection(*held))
    ]
    if not lacking:
        ranks = [rank for rank, theirs in enumerate(every) if theirs is None or theirs[:2] != every[0][:2]]
        return f"{what}: {_ranks(ranks)} would take them in another order or way than rank 0; {remedy}"
    shown = ", ".join(lacking[:SHOWN]) + (", ..." if len(lacking) > SHOWN else "")
    return f"the processes do not agree on the {what}: {shown}; {remedy}"


def _why(name: str, every: Sequence[_Told]) -> str:
    reason = next((f"rank {n}: {found[2][name]}" for n, found in enumerate(every) if found and name in found[2]), None)
    return "" if reason is None else f" ({reason})"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
