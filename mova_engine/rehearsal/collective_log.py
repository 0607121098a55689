"""Counts a step's collectives, and the bytes that this rank sends, by kind and group; checks their shapes.

Bytes are counted as `distributed.collectives` does: of an all-gather, reduce-scatter or all-to-all over p ranks the
parts for other ranks, of an all-reduce of n bytes 2 (p - 1) / p * n (ring algorithm), of a point-to-point message all.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mova_engine.errors import MovaError
from mova_engine.rehearsal.memory_tracker import is_wrapped, tensors_in
from mova_engine.rehearsal.result import Collective

# Kinds by the names of torch's c10d operations.
KINDS = {
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
}


class CollectiveLog(TorchDispatchMode):
    """Counts the collectives of torch.distributed inside the with-block. Raises MovaError for tensors or split sizes
    that do not fit the group, with which NCCL or HCCL would hang or write wrong data.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: Counter[tuple[str, str, int]] = Counter()
        self._bytes: Counter[tuple[str, str, int]] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace != "c10d":
            return func(*args, **(kwargs or {}))
        if is_wrapped(types):
            return NotImplemented
        kwargs = kwargs or {}
        self._note(func, args, kwargs)
        return func(*args, **kwargs)

    def collectives(self) -> tuple[Collective, ...]:
        """The counts, by kind and group."""
        return tuple(Collective(*key, self._calls[key], self._bytes[key]) for key in sorted(self._calls))

    def forget(self) -> None:
        """Set all counts to zero."""
        self._calls.clear()
        self._bytes.clear()

    def _note(self, func: Any, args: tuple, kwargs: dict) -> None:
        kind = KINDS.get(func.overloadpacket.__name__)
        if kind is None:
            raise MovaError(
                f"the collective {func.name()} is not one that a rehearsal knows: count it in collective_log"
            )
        values, tensors = operands(func, args, kwargs)
        group = dist.ProcessGroup.unbox(values["process_group"])
        size, name = group.size(), group_name(group)
        check_fit(kind, name, size, tensors, values.get("output_split_sizes"), values.get("input_split_sizes"))
        key = (kind, name, size)
        self._calls[key] += 1
        self._bytes[key] += bytes_sent(kind, size, group.rank(), tensors, values)


def operands(func: Any, args: tuple, kwargs: dict) -> tuple[dict[str, Any], list[Tensor]]:
    """The arguments of a collective's operation by name, and the tensors among them."""
    values = dict(zip((x.name for x in func._schema.arguments), args, strict=False)) | kwargs
    return values, tensors_in((*args, *kwargs.values()))


def group_name(group: dist.ProcessGroup) -> str:
    """The mesh dimension of a group; "world" for the group of all ranks."""
    described = group.group_desc.removeprefix("mesh_")
    return "world" if described in ("default_pg", "undefined") else described


def check_fit(
    kind: str,
    name: str,
    size: int,
    tensors: Sequence[Tensor],
    out_pieces: Sequence[int] | None = None,
    in_pieces: Sequence[int] | None = None,
) -> None:
    """Raise MovaError if tensors (output, input) or split sizes do not fit a collective of a group of `size` ranks."""
    head = f"{kind} in the group {name} of {size} ranks"
    devices, dtypes = {x.device.type for x in tensors}, {x.dtype for x in tensors}
    if len(devices) > 1 or len(dtypes) > 1:
        found = ", ".join(f"{list(x.shape)} {x.dtype} on {x.device}" for x in tensors)
        raise MovaError(f"{head} got tensors of different devices or dtypes: {found}")
    if kind == "all_to_all":
        for what, x, pieces in (("receives", tensors[0], out_pieces), ("sends", tensors[1], in_pieces)):
            if pieces and len(pieces) != size:
                raise MovaError(f"{head} {what} {len(pieces)} pieces: it is meant for another group")
            if pieces and sum(pieces) != len(x):
                raise MovaError(f"{head} {what} pieces of {sum(pieces)} elements in a tensor of {len(x)}")
    if kind in ("all_gather", "reduce_scatter"):
        whole, part = tensors if kind == "all_gather" else reversed(tensors)
        if whole.numel() != part.numel() * size:
            raise MovaError(f"{head} got {whole.numel()} elements for {part.numel()} of each rank")


def bytes_sent(kind: str, size: int, rank: int, tensors: Sequence[Tensor], values: dict[str, Any]) -> int:
    """Bytes that rank `rank` of a group of `size` sends in a collective with these operands (see `operands`)."""
    sizes = [x.numel() * x.element_size() for x in tensors]
    if kind == "all_reduce":
        return 2 * (size - 1) * sum(sizes) // size
    if kind in ("all_gather", "reduce_scatter"):
        return (size - 1) * min(sizes)
    if kind == "all_to_all":
        pieces = values.get("input_split_sizes")
        own = pieces[rank] * tensors[1].element_size() if pieces else sizes[1] // size
        return sizes[1] - own
    if kind == "broadcast":
        return sum(sizes) if values.get("root_rank", 0) == rank else 0
    return sum(sizes) if kind == "send" else 0
