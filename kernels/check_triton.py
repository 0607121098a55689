"""`python -m mova_kernels.check_triton`: compile every Triton kernel for GPUs that need not be there, and report.

The operators are called, forward and backward, at MOVA's widths; their launches are recorded instead of made, and each
distinct specialisation is compiled to PTX and on to a cubin with the assembler that Triton brings. A line of the report
has the kernel, what it was specialised for, the architecture, registers per thread, bytes of local memory per thread
(spills: there must be none) and bytes of shared memory per program. Exit status 1 when a kernel spills.
"""

import argparse
import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mova_kernels.triton_rows import WARPS, Launch, recording

WIDTHS = (1536, 5120)
CAPABILITIES = (80, 90, 100)
HEAD_DIM = 128
_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float8_e4m3fn: "*fp8e4nv",
}  # fmt: skip
# GPUs convert to fp8 from here on.
_FP8 = 89


class Usage(NamedTuple):
    """What a compiled kernel needs: registers and local memory (bytes) of a thread, shared memory (bytes)."""

    registers: int
    local: int
    shared: int


def _calls(d: int, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every form in which the model calls the operators: (name, arguments) for rows of width d."""
    b, s = 2, 160

    def rows(n: int) -> list[Tensor]:
        return [torch.zeros(b, s, d, dtype=dtype, requires_grad=True) for _ in range(n)]

    def modulation(*names: str) -> dict[str, Tensor]:
        return {name: torch.zeros(b, d, requires_grad=True) for name in names}

    def affine(*names: str) -> dict[str, Tensor]:
        return {name: torch.zeros(d, dtype=dtype, requires_grad=True) for name in names}

    (x, y), eps = rows(2), 1e-6
    angles = torch.zeros(s, HEAD_DIM // 2)
    yield "rms_norm", {"x": x, **affine("weight"), "eps": eps}
    for interleaved in (True, False):
        tables = {"cos": angles, "sin": angles, "interleaved": interleaved}
        yield "rms_norm_rope", {"x": x, **affine("weight"), **tables, "eps": eps}
    yield "norm_modulate", {"x": x, **modulation("shift", "scale"), "eps": eps}
    yield "layer_norm", {"x": x, **affine("weight", "bias"), "eps": eps}
    for gate in (modulation("gate"), {"gate": None}):
        residual = {"x": x, "y": y, **gate}
        yield "gate_residual", residual
        yield "gate_residual_norm", {**residual, **affine("weight", "bias"), "eps": eps}
        yield "gate_residual_norm_modulate", {**residual, **modulation("shift", "scale"), "eps": eps}
    yield "bias_gelu", {"x": x, **affine("bias")}
    for factor in (None, torch.zeros(d)):
        yield "quantize_rows", {"x": x.detach(), "factor": factor}
    h = d // HEAD_DIM
    yield "merge_lse", {"outs": torch.zeros(2, b, s, h, HEAD_DIM, dtype=dtype), "lses": torch.zeros(2, b, h, s)}


def operators() -> tuple[str, ...]:
    """The operators that have a Triton kernel."""
    return tuple(dict.fromkeys(name for name, _ in _calls(HEAD_DIM, torch.float32)))


def launches(d: int, dtype: torch.dtype) -> list[Launch]:
    """What the operators launch, forward and backward, for activations of width d."""
    with recording() as found:
        for name, arguments in _calls(d, dtype):
            outputs = getattr(importlib.import_module(f"mova_kernels.{name}.triton"), name)(**arguments)
            outputs = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out.requires_grad]
            if outputs:
                leaves = [x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad]
                torch.autograd.grad(outputs, leaves, [torch.zeros_like(out) for out in outputs])
    return found


def source(launch: Launch) -> ASTSource:
    """The launch specialised as Triton's own launcher does: by types, None, the number 1 and divisibility by 16."""
    signature, constants, attributes = {}, {}, {}
    for index, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.args, strict=False)):
        if value is None or (type(value) is int and value == 1):
            signature[name], constants[(index,)] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
        elif isinstance(value, int):
            signature[name] = "i32" if value < 2**31 else "i64"
        else:
            signature[name] = "fp32"
        # torch's allocations begin at multiples of 16 bytes and more.
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    for name, value in launch.constants.items():
        signature[name], constants[(launch.kernel.arg_names.index(name),)] = "constexpr", value
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_for(launch: Launch, capability: int) -> Usage:
    """Compile for one compute capability (90: sm_90) down to the cubin; raises what Triton raises if it cannot."""
    compiled = triton.compile(source(launch), target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        report = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump reports no usage of {launch.kernel.__name__}: {report.strip()}")
    registers, stack, local = map(int, found.groups())
    return Usage(registers, stack + local, compiled.metadata.shared)


def variants(dtype: torch.dtype, widths: tuple[int, ...] = WIDTHS) -> dict[str, Launch]:
    """Distinct specialisations at the given widths, by a readable name: the kernel and what of it is fixed."""
    distinct = {source(launch).hash(): launch for d in widths for launch in launches(d, dtype)}
    named = {}
    for launch in distinct.values():
        absent = [n for n, value in zip(launch.kernel.arg_names, launch.args, strict=False) if value is None]
        fixed = [f"{k.lower()}={v}" for k, v in launch.constants.items() if k == "INTERLEAVED"]
        name = " ".join([launch.kernel.__name__, *fixed, *([f"without {','.join(absent)}"] if absent else [])])
        named[name if name not in named else f"{name} ({len(named)})"] = launch
    return named


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mova_kernels.check_triton", description=__doc__.split("\n\n")[0])
    parser.add_argument("--capability", type=int, nargs="+", default=CAPABILITIES, help="default: 80 90 100")
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    args = parser.parse_args(argv)
    spilled = 0
    print(f"triton {triton.__version__}, {args.dtype}, widths {WIDTHS}, {WARPS} warps")
    print(f"{'kernel':64} {'arch':>6} {'registers':>9} {'local':>6} {'shared':>6}")
    for name, launch in variants(getattr(torch, args.dtype)).items():
        for capability in args.capability:
            if capability < _FP8 and any(getattr(x, "dtype", None) == torch.float8_e4m3fn for x in launch.args):
                print(f"{name:64} {f'sm_{capability}':>6} has no fp8", flush=True)
                continue
            usage = compile_for(launch, capability)
            spilled += usage.local > 0
            print(f"{name:64} {f'sm_{capability}':>6} {usage.registers:9} {usage.local:6} {usage.shared:6}", flush=True)
    print("no kernel spills" if not spilled else f"{spilled} spill")
    return 1 if spilled else 0


if __name__ == "__main__":
    raise SystemExit(main())
