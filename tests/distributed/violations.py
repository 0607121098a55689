"""What an accelerator's library does not forgive, done on purpose under the guard, and faults that it has found."""

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from distributed.device import backend, device
from distributed.small import backward, build_sharded, clips, processes
from torch import Tensor

from mova_engine.config.mesh import MeshShape
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.fsdp import clip_grad_norm
from mova_engine.distributed.processes import read_launch, start_processes
from mova_engine.distributed.rounds import Rounds
from mova_engine.ops import bind


def _unmet() -> dist.ProcessGroup:
    """A group of the device whose ranks have exchanged nothing."""
    return dist.new_group()


def _first_message() -> None:
    """Before all ranks of the group have met: those without a neighbour would know nothing of it."""
    group = Group(_unmet(), device())
    ones = torch.ones(2, device=device())
    group.neighbours(*({0: (None, ones), 1: (ones, None)}.get(group.rank, (None, None))))


def _missing() -> None:
    group = dist.new_group(timeout=timedelta(seconds=1))
    if _rank() == 0:
        dist.all_reduce(torch.ones(2, device=device()), group=group)


def _rank() -> int:
    return read_launch().rank


def _other_exchange() -> None:
    x = torch.ones(2, device=device())
    (dist.all_reduce if _rank() else lambda y: dist.broadcast(y, 0))(x)


def _other_size() -> None:
    dist.all_reduce(torch.ones(2 + (_rank() == 1), device=device()))


def _other_splits() -> None:
    size = read_launch().world
    send = [1 + (_rank() == 1)] * size
    x = torch.ones(sum(send), device=device())
    dist.all_to_all_single(x.new_empty(size), x, [1] * size, send)


def _other_message() -> None:
    group = _unmet()
    dist.all_reduce(torch.ones(1, device=device()), group=group)
    if _rank() == 0:
        dist.send(torch.ones(3, device=device()), 1, group=group)
    elif _rank() == 1:
        dist.recv(torch.ones(2, device=device()), 0, group=group)


VIOLATIONS: dict[str, Callable[[], object]] = {
    "host tensor on the device's group": lambda: dist.all_reduce(torch.ones(2)),
    "device tensor on the host's group": lambda: dist.broadcast(
        torch.ones(2, device=device()), 0, group=dist.new_group(backend="gloo")
    ),
    "object on the device's group": lambda: dist.all_gather_object([None] * read_launch().world, "value"),
    "first message of some": _first_message,
    "rank missing": _missing,
    "another exchange": _other_exchange,
    "another size": _other_size,
    "other splits": _other_splits,
    "another message": _other_message,
    "not contiguous": lambda: dist.all_reduce(torch.ones(2, 3, device=device()).t()),
    "sum in float64": lambda: dist.all_reduce(torch.ones(2, device=device(), dtype=torch.float64)),
    "devices mixed": lambda: torch.ones(2, device=device()) + torch.ones(2),
}


def violated(what: str) -> str:
    """Do it; what the guard, or the device, says in this rank."""
    place = start_processes(backend(), read_launch(), MeshShape(dp_shard=read_launch().world), timeout_s=20)
    # A rank that is refused ends at once: the others must have made all connections to it.
    place.wait_for_first()
    try:
        VIOLATIONS[what]()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _norm_as_before(gradients: list[Tensor], max_norm: float, group: Group) -> Tensor:
    """The norm of gradients on the host, summed over the group of the device."""
    norms = torch.stack(torch._foreach_norm(gradients))
    squares = norms.square().sum()
    dist.all_reduce(squares, group=group.process_group)
    return squares.sqrt()


def offloaded_step() -> list[str]:
    """Where the norm of a step's gradients is whose weights are on the host; and what is said of it as it was when only
    gloo was asked.
    """
    place = processes(None)
    model, shards = build_sharded(place, place.context.operators(bind(backend())), offload=True)
    backward(model, clips(7, 1), 0, place.context)
    gradients = [p.grad.to_local() for p in model.parameters() if p.grad is not None]
    assert {x.device.type for x in gradients} == {"cpu"}
    found = []
    for norm_of in (clip_grad_norm, _norm_as_before):
        try:
            found.append(f"norm on {norm_of(gradients, 1.0, shards.group).device.type}")
        except RuntimeError as error:
            found.append(str(error))
    return found


def _broadcast_as_before(rounds: Rounds, batch: dict | None, turn: int) -> dict:
    """Tensors as they are, over the group of the host."""
    received = {}
    for name, outline in rounds.group.broadcast_object(
        None if batch is None else dict.fromkeys(batch, (2, 3)), turn
    ).items():
        received[name] = torch.empty(outline) if batch is None else batch[name]
        dist.broadcast(received[name], turn, group=rounds.group.process_group)
    return received


def conditions_handed_on(broken: bool = False) -> str:
    """What an encoder has made on the device of rank 0, in all ranks; broken: as it was when only gloo was asked."""
    place = start_processes(backend(), read_launch(), MeshShape(ulysses=read_launch().world), timeout_s=2)
    made = {"text": torch.arange(6.0, device=device()).view(2, 3)} if place.is_first else None
    try:
        found = (_broadcast_as_before if broken else Rounds.broadcast)(place.rounds, made, 0)["text"]
    except RuntimeError as error:
        return str(error)
    return f"{found.tolist()} on {found.device.type}"
