"""Worlds of processes, each started once, and what several files of tests train on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import one_layer
import pytest
from distributed.world import World, end_program

from mova_engine.config.model import PRESETS
from mova_engine.data.synthetic.bounce import generate


@pytest.fixture(autouse=True, scope="session")
def _program() -> Iterator[None]:
    """What starts the worlds ends after them all."""
    yield
    end_program()


@pytest.fixture(scope="session")
def worlds(request) -> Iterator[Callable[[int], World]]:
    """`worlds(4)`: a World of four processes, started anew where an error ended it."""
    running: dict[int, World] = {}

    def get(size: int) -> World:
        if size not in running or not running[size].alive:
            running[size] = World(size, request.config.getoption("--worlds"))
        return running[size]

    yield get
    for world in running.values():
        world.close()


@pytest.fixture(autouse=True, scope="module")
def _one_layer():
    """As in the worlds' processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "nano", one_layer.nano())
        yield


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Eight clips."""
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, 8, seed=3)
    return folder


@pytest.fixture(scope="session")
def shared(clips, worlds, tmp_path_factory) -> Path:
    """A run of four steps by two processes that share clips and weights, with checkpoints after two and four."""
    return _run(worlds(2), clips, tmp_path_factory, batch=4)


@pytest.fixture(scope="session")
def shared_by_four(clips, worlds, tmp_path_factory) -> Path:
    """The same by four processes, two for each clip."""
    return _run(worlds(4), clips, tmp_path_factory, batch=2)


def _run(world: World, clips: Path, tmp_path_factory, batch: int) -> Path:
    out = tmp_path_factory.mktemp("runs") / f"shared-{world.size}"
    assert [status for status, _ in world.train(clips, out, steps=4, every=2, batch=batch)] == [0] * world.size
    return out
