"""torchrun's store, under a prefix that belongs to one attempt of a launch.

torchrun restarts all processes when one has died (`--max-restarts`) or when a machine joins (`--nnodes MIN:MAX`). Its
store outlives them: what an earlier attempt wrote is still there, such as gloo's addresses, NCCL's unique id,
heartbeats and verdicts. Processes that read such keys connect to dead processes. TORCHELASTIC_RESTART_COUNT does not
distinguish attempts: every agent counts its own failures, and one that joins later begins at 0, so that the processes
of one attempt may have different counts. Therefore rank 0 draws a name for the attempt, and tells it to each process of
the attempt:

    rank r    draws a nonce, writes it to `asks/r`, waits for `answers/NONCE`, writes `heard/NAME/r`
    rank 0    answers the nonces in `asks/r` until every rank has written `heard/NAME/r`

A nonce of an earlier attempt is answered too, but nobody reads the answer.
"""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

# Seconds between looks at the store.
LOOK_S = 0.05
PREFIX = "mova_attempt"
# The attempt that this process belongs to, by address and port of the store.
_names: dict[tuple[str, int], str] = {}


def has_launch_store() -> bool:
    """Whether the launcher runs a store for its processes, as torchrun does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def launch_store(rank: int, world: int, timeout_s: float) -> dist.Store:
    """A new connection to the launcher's store, with keys of this attempt alone. All processes of the attempt must call
    it: the first call of a process waits until it has met rank 0 (of rank 0: all others).

    timeout_s: of that, and of waits for keys. Raises TimeoutError for processes that do not come, RuntimeError for a
    store that does not answer.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, None, False, timedelta(seconds=timeout_s), wait_for_workers=False)
    if (address, port) not in _names:
        _names[address, port] = meet(dist.PrefixStore(PREFIX, store), rank, world, timeout_s)
    return dist.PrefixStore(_names[address, port], store)


def meet(store: dist.Store, rank: int, world: int, timeout_s: float) -> str:
    """The name of the attempt that `world` processes are in, which all call this. store: common to all attempts.

    Raises TimeoutError.
    """
    until = time.monotonic() + timeout_s
    own = uuid.uuid4().hex
    if rank == 0:
        missing = set(range(1, world))
        while missing:
            missing -= {other for other in missing if _has_heard(store, other, own)}
            _wait(until, missing, f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, sorted(missing)[:8]))}")
        return own
    store.set(f"asks/{rank}", own)
    while not store.check([f"answers/{own}"]):
        _wait(until, True, "rank 0")
    name = store.get(f"answers/{own}").decode()
    store.set(f"heard/{name}/{rank}", "")
    return name


def _has_heard(store: dist.Store, rank: int, name: str) -> bool:
    """In rank 0: answer what `rank` has asked; whether it has read the answer."""
    if store.check([f"heard/{name}/{rank}"]):
        return True
    if store.check([f"asks/{rank}"]):
        store.set(f"answers/{store.get(f'asks/{rank}').decode()}", name)
    return False


def _wait(until: float, more: object, who: str) -> None:
    """Sleep, in Python, so that signals are handled, if there is `more` to wait for."""
    if more:
        if time.monotonic() > until:
            raise TimeoutError(f"{who} did not come")
        time.sleep(LOOK_S)
