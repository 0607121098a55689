"""A process group that refuses what NCCL or HCCL refuse, or would wait for without end, and is gloo otherwise.

gloo forgives much: it connects any two ranks when they first speak, and where the device is the host it cannot tell
their tensors apart. `GuardGroup` is the group of the stand-in device (`parallel.standin`) and raises

* for a tensor that is not the device's, is not contiguous, or has a dtype that one of the libraries lacks;
* for a point-to-point message in a group whose ranks have not all met in an exchange: the libraries set a group up in
  its first exchange, and want all of its ranks for that;
* where ranks do not do the same at the same time: another exchange, dtype, size, root or split, or none (who is missing
  is named after the group's timeout). Before each exchange they tell each other what they are about to do;
* for a message of another size or dtype than the one that is waited for.

The groups for the CPU stay gloo's, which does not know the stand-in device and raises for its tensors.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from distributed import standin
from distributed.standin import on_cpu
from torch import Tensor
from torch._C import _distributed_c10d as c10d
from torch.distributed import ProcessGroup, ProcessGroupGloo, Store, Work

NAME = "guard"
# What NCCL and HCCL both carry, and what both add up: neither adds bool, HCCL neither float64 nor uint8.
CARRIED = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool),
)
ADDED = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int32, torch.int64)
_KINDS = ("all_reduce", "broadcast", "all_gather", "reduce_scatter", "all_to_all", "barrier")
_ROOTLESS = -1
# Seconds that ranks have to say that they waited in vain.
_ROLL_CALL = 0.5
# How often each kind of exchange was made in this process.
exchanges: Counter[str] = Counter()


class GuardError(RuntimeError):
    """An exchange that an accelerator's library would refuse, or never end."""


class GuardGroup(ProcessGroup):
    """The ranks of a group of the stand-in device."""

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._store, self._number, self._ranks = store, rank, size
        self._gloo = ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, timeout)
        self._met, self._step = size == 1, 0
        # Messages on their way.
        self._sent: deque[Work] = deque(maxlen=512)

    def getBackendName(self) -> str:
        return NAME

    # torch keeps a group's name with its backends, of which a group written in Python has none.
    def setGroupName(self, name: str) -> None:
        self._name = name

    def getGroupName(self) -> str:
        return self._name

    _set_group_name, group_name = setGroupName, property(getGroupName)

    def allreduce(self, tensors: list[Tensor], options: c10d.AllreduceOptions) -> Work:
        (x,) = tensors
        self._check("all_reduce", x, adds=True)
        self._agree("all_reduce", x.dtype, x.numel())
        return self._gloo.allreduce([on_cpu(x)], options)

    def broadcast(self, tensors: list[Tensor], options: c10d.BroadcastOptions) -> Work:
        (x,) = tensors
        self._check("broadcast", x)
        self._agree("broadcast", x.dtype, x.numel(), options.rootRank)
        return self._gloo.broadcast([on_cpu(x)], options)

    def _allgather_base(self, output: Tensor, x: Tensor, options: c10d.AllgatherOptions) -> Work:
        self._check("all_gather", output, x)
        if output.numel() != self._ranks * x.numel():
            raise GuardError(f"all_gather of {x.numel()} elements of {self._ranks} ranks into {output.numel()}")
        self._agree("all_gather", x.dtype, x.numel())
        return self._gloo._allgather_base(on_cpu(output), on_cpu(x), options)

    def _reduce_scatter_base(self, output: Tensor, x: Tensor, options: c10d.ReduceScatterOptions) -> Work:
        self._check("reduce_scatter", output, x, adds=True)
        if x.numel() != self._ranks * output.numel():
            raise GuardError(f"reduce_scatter of {x.numel()} elements to {self._ranks} ranks' {output.numel()}")
        self._agree("reduce_scatter", x.dtype, x.numel())
        return self._gloo._reduce_scatter_base(on_cpu(output), on_cpu(x), options)

    def alltoall_base(
        self, output: Tensor, x: Tensor, receive: list[int], send: list[int], options: c10d.AllToAllOptions
    ) -> Work:
        self._check("all_to_all", output, x)
        even = [x.shape[0] // self._ranks] * self._ranks if x.dim() else []
        self._agree("all_to_all", x.dtype, 0, splits=(send or even, receive or even))
        return self._gloo.alltoall_base(on_cpu(output), on_cpu(x), receive, send, options)

    # As newer versions of torch call them.
    all_gather_single, reduce_scatter_single, all_to_all_single = _allgather_base, _reduce_scatter_base, alltoall_base

    def barrier(self, options: c10d.BarrierOptions) -> Work:
        self._agree("barrier", torch.uint8, 0)
        return self._gloo.barrier(options)

    def send(self, tensors: list[Tensor], to: int, tag: int = 0) -> Work:
        (x,) = tensors
        self._check_message("send", x)
        # The libraries put a message in a queue; gloo waits until it is taken, which both of two ranks would do.
        for message, odd in ((self._header(x), 1), (on_cpu(x).clone(), 0)):
            self._sent.append(self._gloo.send([message], to, 2 * tag + odd))
        return _Checked(lambda: None)

    def recv(self, tensors: list[Tensor], source: int, tag: int = 0) -> Work:
        (x,) = tensors
        self._check_message("recv", x)
        expected, said = self._header(x), torch.zeros(2, dtype=torch.int64)
        told = self._gloo.recv([said], source, 2 * tag + 1)

        def wait() -> None:
            told.wait()
            if not torch.equal(said, expected):
                pair = f"rank {source} sends {_message(said)}, rank {self._number} waits for {_message(expected)}"
                raise GuardError(f"recv: {pair}")
            self._gloo.recv([on_cpu(x)], source, 2 * tag).wait()

        return _Checked(wait)

    def _check_message(self, what: str, x: Tensor) -> None:
        self._check(what, x)
        if not self._met:
            raise GuardError(
                f"{what} is this group's first exchange, for which NCCL and HCCL want all of its {self._ranks} ranks"
            )

    def _check(self, what: str, *tensors: Tensor, adds: bool = False) -> None:
        exchanges[what] += 1
        for x in tensors:
            if x.device.type != standin.NAME:
                raise GuardError(f"{what}: No backend type associated with device type {x.device.type}")
            if not x.is_contiguous():
                raise GuardError(f"{what}: Tensors must be contiguous, got strides {x.stride()} for {tuple(x.shape)}")
            if x.dtype not in (ADDED if adds else CARRIED):
                raise GuardError(f"{what}: {x.dtype} is not among what NCCL and HCCL {'add up' if adds else 'carry'}")
        if len({x.dtype for x in tensors}) > 1:
            raise GuardError(f"{what}: input and output differ in dtype")

    def _header(self, x: Tensor) -> Tensor:
        return torch.tensor([CARRIED.index(x.dtype), x.numel()])

    def _agree(
        self,
        kind: str,
        dtype: torch.dtype,
        elements: int,
        root: int = _ROOTLESS,
        splits: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        """Wait until all ranks have said what they do here; raise where that does not fit together."""
        self._step += 1
        if self._ranks == 1:
            return
        none = [0] * self._ranks
        send, receive = splits or (none, none)
        own = torch.tensor([_KINDS.index(kind), CARRIED.index(dtype), elements, root, *send, *receive])
        every = own.new_empty(self._ranks, len(own))
        try:
            self._gloo._allgather_base(every.view(-1), own, c10d.AllgatherOptions()).wait()
        except RuntimeError as error:
            self._raise_missing(kind, error)
        facts, sent, received = every[:, :4], every[:, 4 : 4 + self._ranks], every[:, 4 + self._ranks :]
        if not (facts == facts[0]).all() or not torch.equal(sent, received.T):
            told = "; ".join(f"rank {rank}: {_exchange(row, splits)}" for rank, row in enumerate(every.tolist()))
            raise GuardError(f"exchange {self._step} of this group is not the same in all ranks: {told}")
        self._met = True

    def _raise_missing(self, kind: str, error: RuntimeError) -> None:
        self._store.set(f"waited/{self._step}/{self._number}", "")
        time.sleep(_ROLL_CALL)
        ranks = range(self._ranks)
        missing = [rank for rank in ranks if not self._store.check([f"waited/{self._step}/{rank}"])]
        what = f"{kind}, exchange {self._step} of this group"
        raise GuardError(f"ranks {missing} did not come to {what}: {error}") from error


class _Checked(Work):
    """A message that is looked at before it is taken."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()
        self._wait = wait

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._wait()
        return True


def _exchange(row: list[int], splits: object) -> str:
    kind, dtype, elements, root, *pieces = row
    text = f"{_KINDS[kind]} of {elements} {CARRIED[dtype]}" + (f" from rank {root}" if root != _ROOTLESS else "")
    half = len(pieces) // 2
    return f"{text}, sends {pieces[:half]}, receives {pieces[half:]}" if splits else text


def _message(header: Tensor) -> str:
    dtype, elements = header.tolist()
    return f"{elements} {CARRIED[dtype]}"


def install() -> None:
    """Give this process the stand-in device, and torch the guard for it."""
    standin.install()
    dist.Backend.register_backend(NAME, GuardGroup, devices=[standin.NAME])
