"""Worlds of processes, each started once."""

import pytest
from parallel.world import World


@pytest.fixture(scope="session")
def worlds():
    """`worlds(4)`: a World of four processes, started anew where an error ended it."""
    running: dict[int, World] = {}

    def get(size: int) -> World:
        if size not in running or not running[size].alive:
            running[size] = World(size)
        return running[size]

    yield get
    for world in running.values():
        world.close()
