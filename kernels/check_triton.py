"""`python -m mova_kernels.check_triton`: compile every Triton kernel for GPUs that need not be there, and report.

The operators are called, forward and backward, at MOVA's widths; their launches are recorded instead of made, and each
distinct specialisation is compiled to PTX and on to a cubin with the assembler that Triton brings. A line of the report
has the kernel, what it was specialised for, dtype, architecture, tile (a measured one where there is a table for the
architecture), registers per thread, bytes of local memory per thread (spills: there must be none) and bytes of shared
memory per program. Exit status 1 when a kernel spills.
"""

import argparse
import itertools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mova_kernels.triton_rows import KernelLaunch
from mova_kernels.triton_variants import DTYPES, WIDTHS, needs_fp8, specialise, variants

CAPABILITIES = (80, 90, 100)
# GPUs convert to fp8 from here on.
FP8 = 89


class Usage(NamedTuple):
    """What a compiled kernel needs: registers and local memory (bytes) of a thread, shared memory (bytes)."""

    registers: int
    local: int
    shared: int


def source(launch: KernelLaunch) -> ASTSource:
    """The launch as Triton's compiler takes it from version 3.3 on."""
    signature, constants, divisible = specialise(launch)
    signature |= dict.fromkeys(constants, "constexpr")
    place = {name: (index,) for index, name in enumerate(launch.kernel.arg_names)}
    attributes = {place[name]: [["tt.divisibility", 16]] for name in divisible}
    return ASTSource(launch.kernel, signature, {place[k]: v for k, v in constants.items()}, attributes)


def compile_for(launch: KernelLaunch, capability: int) -> Usage:
    """Compile for one compute capability (90: sm_90) down to the cubin; raises what Triton raises if it cannot."""
    compiled = triton.compile(
        source(launch), target=GPUTarget("cuda", capability, 32), options={"num_warps": launch.warps}
    )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        report = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump reports no usage of {launch.kernel.__name__}: {report.strip()}")
    registers, stack, local = map(int, found.groups())
    return Usage(registers, stack + local, compiled.metadata.shared)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mova_kernels.check_triton", description=__doc__.split("\n\n")[0])
    parser.add_argument("--capability", type=int, nargs="+", default=CAPABILITIES, help="default: 80 90 100")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16"], help="default: bfloat16")
    args = parser.parse_args(argv)
    spilled = 0
    print(f"triton {triton.__version__}, widths {WIDTHS}")
    print(f"{'kernel':62} {'dtype':8} {'arch':>6} {'tile':>8} {'registers':>9} {'local':>6} {'shared':>6}")
    for dtype, capability in itertools.product(args.dtype, args.capability):
        arch = f"sm_{capability}"
        for name, launch in variants(getattr(torch, dtype), arch=arch).items():
            tile = f"{launch.constants['ROWS']} x {launch.constants['COLS']}"
            line = f"{name:62} {dtype:8} {arch:>6} {tile:>8}"
            if capability < FP8 and needs_fp8(launch):
                print(f"{line} has no fp8", flush=True)
                continue
            usage = compile_for(launch, capability)
            spilled += usage.local > 0
            print(f"{line} {usage.registers:9} {usage.local:6} {usage.shared:6}", flush=True)
    print("no kernel spills" if not spilled else f"{spilled} spill")
    return 1 if spilled else 0


if __name__ == "__main__":
    raise SystemExit(main())
