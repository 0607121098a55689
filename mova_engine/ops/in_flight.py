"""Results that are still on their way: an operator starts a transfer and returns the tensor that it will fill.

Whoever reads such a tensor calls `received` first. It is an operator too, so that gradients may be on their way between
two nodes of the backward: `mova::received` waits and returns the same tensor. Other tensors pass through it unchanged.
"""

from collections.abc import Callable
from weakref import finalize

import torch
from torch import Tensor

from mova_engine.ops.custom_ops import implement

# Fills a tensor that it is given, once what it takes has arrived.
Arrival = Callable[[Tensor], None]
# Starts the transfer into a tensor that it is given. It holds no reference to it: a tensor that nobody wants can go.
Transfer = Callable[[Tensor], Arrival]

# By the storage that is filled: operators and checkpointing make other tensors of the same storage. A transfer that has
# been started is an `Arrival`.
_waiting: dict[int, Transfer] = {}
_started: dict[int, Arrival] = {}


def in_flight(x: Tensor, transfer: Transfer | None = None, arrival: Arrival | None = None) -> Tensor:
    """Mark x as filled by a transfer, which `start` or `wait` starts; or, already started, by an arrival. Returns x.

    Nobody may change the storage of x otherwise until it has been waited for.
    """
    storage = x.untyped_storage()
    key = storage._cdata
    _forget(key)
    if transfer is not None:
        _waiting[key] = transfer
    if arrival is not None:
        _started[key] = arrival
    finalize(storage, _forget, key).atexit = False
    return x


def _forget(key: int) -> None:
    _waiting.pop(key, None)
    _started.pop(key, None)


def start(*tensors: Tensor) -> None:
    """Start what fills these tensors, where it was not."""
    for x in tensors:
        key = x.untyped_storage()._cdata
        transfer = _waiting.pop(key, None)
        if transfer is not None:
            # A tensor's version tells whether it was changed; selective checkpointing has seen it before it is filled.
            _started[key] = transfer(x.data)


def wait(x: Tensor) -> Tensor:
    """x, once it is filled."""
    start(x)
    arrival = _started.pop(x.untyped_storage()._cdata, None)
    if arrival is not None:
        arrival(x.data)
    return x


def _fake(x: Tensor) -> Tensor:
    return torch.empty_like(x)


implement("received", wait, _fake)
