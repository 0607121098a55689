"""Passes over memory of the Triton kernels, counted in Triton's interpreter on a CPU's tensors or an emulated NPU's.

Twice: of an operator's inputs and outputs, as of every other implementation (`operator_passes`); and of every load and
store within its kernels, where a row that is read a second time, which a device finds in its cache, counts again.

Run as a program, with TRITON_INTERPRET=1 set before Triton is imported; its arguments are the device and the target
whose tiles are used. Prints JSON: [[operator, whether it has a gate, [forward, backward], the same by accesses], ...].
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from models.passes import operator_passes

from mova_engine.backend import get_backend
from mova_engine.ops import OPERATORS, resolve

ROOT = Path(__file__).resolve().parents[2]


class KernelPasses(NamedTuple):
    """(forward, backward) of one call in bfloat16: by operands, and by what its kernels load and store."""

    operands: tuple[float, float]
    accesses: tuple[float, float]


# Of an operator, and whether it has a gate.
Counted = dict[tuple[str, bool], KernelPasses]
# What the kernels load and store. A norm reads its rows for their statistics, and again to normalise them; its backward
# reads them and their gradient for two means, and again. A program's tile of rows fits the caches of GPUs and of NPUs.
ACCESSES = {
    ("rms_norm_rope", True): (3, 5),
    ("rms_norm", True): (3, 5),
    ("norm_modulate", True): (3, 5),
    ("layer_norm", True): (3, 5),
    ("gate_residual", True): (3, 3),
    ("gate_residual", False): (3, 0),
    ("gate_residual_norm", True): (6, 8),
    ("gate_residual_norm", False): (6, 6),
    ("gate_residual_norm_modulate", True): (6, 8),
    ("gate_residual_norm_modulate", False): (6, 6),
    ("bias_gelu", True): (2, 3),
}


def on_rows() -> list[tuple[str, str, bool]]:
    """(operator, target, whether with a gate) of the operators on rows that are a Triton kernel of their own."""
    found = []
    for name, operator in OPERATORS.items():
        targets = (entry.target for entry in operator.implementations if entry.name == "triton")
        for target in targets if operator.least and not name.startswith("linear") else ():
            found += [(name, target, gate) for gate in (True, False) if gate or name.startswith("gate")]
    return found


class AccessCounter:
    """Bytes of tensors of at least `smallest` elements that kernels load and store in the interpreter, by kernel."""

    def __init__(self, smallest: int) -> None:
        self.smallest, self.bytes = smallest, Counter()
        self._kernel, self._large = "", []

    def __enter__(self) -> "AccessCounter":
        from triton.runtime import interpreter

        executor, builder = interpreter.GridExecutor, interpreter.interpreter_builder
        copied, load, store = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store

        def note_tensors(launch, args, kwargs):
            args, kwargs = copied(launch, args, kwargs)
            tensors = [x for x in args if isinstance(x, torch.Tensor) and x.numel() >= self.smallest]
            self._kernel = launch.fn.__name__
            self._large = [(x.data_ptr(), x.data_ptr() + x.nbytes, x.itemsize) for x in tensors]
            return args, kwargs

        def note_load(places, mask, *rest):
            self._add(places, mask)
            return load(places, mask, *rest)

        def note_store(places, value, mask, *rest):
            self._add(places, mask)
            return store(places, value, mask, *rest)

        self._patches = [
            mock.patch.object(executor, "_init_args_hst", note_tensors),
            mock.patch.object(builder, "create_masked_load", note_load),
            mock.patch.object(builder, "create_masked_store", note_store),
        ]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_) -> None:
        for patch in self._patches:
            patch.stop()

    def _add(self, places, mask) -> None:
        """A tile's addresses, of which `mask` says which are used, are all of one tensor."""
        used = places.data[mask.data]
        for begin, end, size in self._large:
            if len(used) and begin <= used[0] < end:
                self.bytes[self._kernel] += len(used) * size


def main(device: str, target: str) -> None:
    from mova_kernels import triton_tiles

    if target == "ascend":
        triton_tiles.TILES["nvidia"] = triton_tiles.TILES["ascend"]
    torch.set_num_threads(1)
    rows, found = 96 * 256, []
    for name, path, gate in on_rows():
        with AccessCounter(rows // 2) as counter:
            operands = operator_passes(OPERATORS[name], resolve(path), get_backend(device).device(), gate)
        accesses = [
            sum(n for kernel, n in counter.bytes.items() if f"_{way}_" in kernel) / rows / 2 for way in ("fwd", "bwd")
        ]
        found.append((name, gate, operands, accesses))
    print(json.dumps(found), flush=True)
    # Not by the interpreter's end: now and then a thread of torch_npu that was not joined then aborts the process.
    os._exit(0)


def count_passes(device: str, target: str) -> Counted:
    """What the program finds, from a process of its own: Triton decides at import whether it interprets."""
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, __file__, device, target]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, f"status {child.returncode}; {child.stdout[-200:]} {child.stderr[-3000:]}"
    lines = json.loads(child.stdout.splitlines()[-1])
    return {(name, gate): KernelPasses(tuple(operands), tuple(accesses)) for name, gate, operands, accesses in lines}


if __name__ == "__main__":
    main(*sys.argv[1:])
