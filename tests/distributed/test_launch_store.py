"""Attempts of a launch that meet in one store."""

import threading
import time

import pytest
import torch.distributed as dist

from mova_engine.distributed.launch_store import meet


def attempt(store: dist.Store, world: int, late: tuple[int, ...] = ()) -> list[str]:
    """The names that so many ranks find; those of `late` come when the others wait."""
    found: dict[int, str] = {}

    def join(rank: int) -> None:
        time.sleep(0.15 if rank in late else 0)
        found[rank] = meet(store, rank, world, 20.0)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(world)]


def test_processes_of_an_attempt_agree_on_its_name_whatever_earlier_ones_have_left():
    store, names = dist.HashStore(), []
    for world, late in ((3, ()), (3, (0,)), (2, (1,)), (4, (0, 2)), (1, ())):
        found = attempt(store, world, late)
        assert len(set(found)) == 1
        names.append(found[0])
    assert len(set(names)) == len(names)


def test_who_does_not_come_is_named():
    with pytest.raises(TimeoutError, match="^ranks 1, 2 did not come"):
        meet(dist.HashStore(), 0, 3, 0.1)
    with pytest.raises(TimeoutError, match="^rank 0 did not come"):
        meet(dist.HashStore(), 1, 3, 0.1)
