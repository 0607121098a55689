"""Choice of tiles for the Triton kernels: candidates, those that fit a GPU, of those that compute the same the fastest.

A kernel is judged in every form in which MOVA calls it (`triton_variants.calls`). What fits is found by compiling,
without the device; the rest takes the device that the tile is for.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mova_kernels.check_triton import FP8, compile_for
from mova_kernels.triton_rows import KernelLaunch
from mova_kernels.triton_tiles import Key, Tile, built_in, compiling_for, key_of, tuned
from mova_kernels.triton_variants import backward, calls, forward, launches, needs_fp8

# Shared memory that a program may use, KB by compute capability; other GPUs have 99.
_SHARED = {80: 163, 87: 163, 90: 227, 100: 227, 103: 227}
# A tile that saves less of the built-in one's time stays unused: it could be noise.
_GAIN = 0.03


class Form(NamedTuple):
    """One of `calls` for activations of width d, by its place among them."""

    d: int
    dtype: torch.dtype
    index: int

    def call(self, *size: Any) -> tuple[str, dict[str, Any]]:
        """(operator, arguments), of the size that `calls` takes."""
        return next(itertools.islice(calls(self.d, self.dtype, *size), self.index, None))


class TuningTask(NamedTuple):
    """A form with values: what is measured, and its results and their gradients."""

    operator: str
    arguments: dict[str, Any]
    outputs: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]

    def forward(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return forward(self.operator, self.arguments)

    def backward(self) -> tuple[Tensor, ...]:
        return backward(self.outputs, self.arguments, *self.grads)


class TileChoice(NamedTuple):
    """The tile for a key, its time and that of the built-in one in ms, and what became of the candidates."""

    tile: Tile
    time: float
    built_in: float
    tried: int
    unfit: int
    wrong: int


def keys(widths: tuple[int, ...], dtype: torch.dtype, capability: int) -> dict[Key, list[Form]]:
    """Every kernel that MOVA launches for activations of these widths, and the forms that launch it."""
    found: dict[Key, list[Form]] = {}
    for d in widths:
        for index, (name, arguments) in enumerate(calls(d, dtype)):
            for one in launches(name, arguments):
                if capability >= FP8 or not needs_fp8(one):
                    found.setdefault(_key(one), []).append(Form(d, dtype, index))
    return found


def _key(launch: KernelLaunch) -> Key:
    # The first argument is an activation: see `triton_rows.launch`.
    return key_of(launch.kernel, launch.args[0])


def candidates(key: Key) -> list[Tile]:
    """Tiles to try, the built-in one first: 8 to 32 values for each thread, and columns that the row has."""
    usual = built_in(key.kernel)
    widest = triton.next_power_of_2(key.width)
    sums = (256, 512, 1024) if "_bwd_" in key.kernel else (usual.sums,)
    found = [usual]
    for cols, rows, warps in itertools.product((256, 512, 1024), (1, 2, 4, 8, 16, 32), (4, 8)):
        if 8 <= rows * min(cols, widest) // (32 * warps) <= 32:
            found += (usual._replace(rows=rows, cols=min(cols, widest), warps=warps, sums=n) for n in sums)
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def trying(capability: int, key: Key, tile: Tile) -> Iterator[None]:
    """Inside the block `tile` is the measured one. Not bound to this thread: a GPU's backward runs in another."""
    table = tuned(f"sm_{capability}")
    before = table.get(key)
    table[key] = tile
    try:
        yield
    finally:
        del table[key]
        if before is not None:
            table[key] = before


def fits(key: Key, forms: list[Form], tile: Tile, capability: int) -> bool:
    """Whether the kernel, in all its forms, compiles for `capability` without spilling and finds its shared memory."""
    with trying(capability, key, tile), compiling_for(f"sm_{capability}"):
        launched = [one for form in forms for one in launches(*form.call()) if _key(one) == key]
    usages = (compile_for(one, capability) for one in launched)
    return all(not usage.local and usage.shared <= _SHARED.get(capability, 99) * 1024 for usage in usages)


def prepare(form: Form, rows: int, device: torch.device) -> TuningTask:
    """A form with normally distributed values, seeded."""
    generator = torch.Generator(device).manual_seed(0)
    operator, arguments = form.call(1, rows, device)
    with torch.no_grad():
        for value in arguments.values():
            if isinstance(value, Tensor):
                value.normal_(generator=generator)
    outputs = forward(operator, arguments)
    grads = (torch.empty_like(out).normal_(generator=generator) for out in outputs if out.requires_grad)
    return TuningTask(operator, arguments, outputs, tuple(grads))


def agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Whether results differ by rounding alone: two units in the last place of a tensor's largest value.

    In float32 a hundred, for sums over rows are taken in another order.
    """
    for x, y in zip(found, expected, strict=True):
        allowed = max(2 * torch.finfo(y.dtype).eps, 1e-5) * y.float().abs().max()
        if not bool((x.float() - y.float()).abs().max() <= allowed):  # NaN is no agreement
            return False
    return True


def choose(
    key: Key,
    forms: list[Form],
    capability: int,
    rows: int,
    device: torch.device,
    time: Callable[[Callable[[], Any]], float],
) -> TileChoice:
    """The tile with which a kernel serves all its forms in the least time, with `rows` rows each on `device`.

    time: milliseconds that a call of its argument takes.
    """
    usual, *others = candidates(key)
    shapes = {tile[:3]: tile for tile in others}
    fitting = {shape for shape, tile in shapes.items() if fits(key, forms, tile, capability)}
    with compiling_for(f"sm_{capability}"):
        with trying(capability, key, usual):
            work = [prepare(form, rows, device) for form in forms]
            run = [one.backward if "_bwd_" in key.kernel else one.forward for one in work]
            expected = [function() for function in run]
            times = {usual: sum(map(time, run))}
        wrong = 0
        for tile in (tile for tile in others if tile[:3] in fitting):
            with trying(capability, key, tile):
                if all(agree(function(), result) for function, result in zip(run, expected, strict=True)):
                    times[tile] = sum(map(time, run))
                else:
                    wrong += 1
    best = min(times, key=times.__getitem__)
    best = best if times[best] < (1 - _GAIN) * times[usual] else usual
    unfit = sum(tile[:3] not in fitting for tile in others)
    return TileChoice(best, times[best], times[usual], len(others), unfit, wrong)
