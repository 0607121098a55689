"""`python -m mova_kernels.check_cuda`: compile the CUDA C++ kernels for GPUs that need not be there, and report.

Every source in `csrc/cuda` is compiled by nvcc to PTX and on to machine code. A line of the report has the kernel with
its template arguments (as in the source: T, [INTERLEAVED,] HELD, WIDE), the architecture, registers per thread, bytes
of local memory per thread (spills: there must be none), bytes of shared memory per block, and how many loads and
stores of device memory in its code are narrower than 8 bytes. A WIDE kernel may have two, for the statistics of a row:
more would mean that the compiler has taken 16-byte accesses apart. MOVA's widths (1536, 5120) are served by the WIDE
kernels with HELD > 0. Exit status 1 when a kernel spills or is not as wide as it should be, 2 without nvcc or sources.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
ARCHITECTURES = ("80", "90a")
# mean and rstd
_STATISTICS = 2


class Kernel(NamedTuple):
    """What a compiled kernel needs: registers and local memory (bytes) of a thread, shared memory (bytes) of a block;
    narrow: accesses of device memory under 8 bytes in its code.
    """

    name: str
    architecture: str
    registers: int
    local: int
    shared: int
    narrow: int

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        found = [f"spills {self.local} bytes"] if self.local else []
        if self.name.endswith("true>") and self.narrow > _STATISTICS:
            found.append(f"has {self.narrow} narrow accesses")
        return found


def compiler() -> str | None:
    """nvcc: what CUDACXX names, as for CMake, or the one on PATH; None where there is none."""
    return shutil.which(os.environ.get("CUDACXX") or "nvcc")


def compile_for(source: Path, architecture: str, *options: str) -> list[Kernel]:
    """The kernels of one source, compiled for compute capability `architecture`; CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        command = [compiler(), "-std=c++17", "-O3", target, "-cubin", "-Xptxas=-v", "--keep", f"--keep-dir={folder}"]
        command += [*options, "-o", f"{folder}/out.cubin", str(source)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        narrow = _narrow_accesses((Path(folder) / f"{source.stem}.ptx").read_text())
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        re.sub(r"\n(?!.*Compiling entry)", " ", report),
    )
    names = subprocess.run(
        ["c++filt"], input="\n".join(f[0] for f in found), capture_output=True, text=True, check=True
    )
    return [
        Kernel(_short(name), f"sm_{architecture}", int(registers), int(stack), int(shared or 0), narrow[mangled])
        for name, (mangled, stack, registers, shared) in zip(names.stdout.splitlines(), found, strict=True)
    ]


def _short(name: str) -> str:
    """`kernel<arguments>` out of a demangled signature."""
    return re.search(r"\w+_kernel<[^>]*>", name)[0].replace("__nv_bfloat16", "bf16").replace("__half", "fp16")


def _narrow_accesses(ptx: str) -> dict[str, int]:
    """For each kernel by its mangled name: loads and stores of device memory under 8 bytes."""
    kernels = re.split(r"\.entry (\w+)", ptx)[1:]
    return {name: sum(1 for _ in _narrow(code)) for name, code in zip(kernels[::2], kernels[1::2], strict=True)}


def _narrow(code: str) -> Iterator[str]:
    for modifiers in re.findall(r"(?:ld|st)\.global(\S*)", code):
        vector, bits = re.search(r"\.v(\d)", modifiers), re.search(r"\.[a-z](\d+)$", modifiers)
        if int(bits[1]) * (int(vector[1]) if vector else 1) < 64:
            yield modifiers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mova_kernels.check_cuda", description=__doc__.split("\n\n")[0])
    parser.add_argument("--architecture", nargs="+", default=ARCHITECTURES, help="default: 80 90a")
    args = parser.parse_args(argv)
    sources = sorted(SOURCES.glob("*.cu"))
    if not sources:
        print(f"error: {SOURCES} has no sources; run this from a checkout of the repository")
        return 2
    if compiler() is None:
        print("error: nvcc is not on PATH; install NVIDIA's CUDA toolkit (no GPU needed), or let CUDACXX name its nvcc")
        return 2
    version = subprocess.run([compiler(), "--version"], check=True, capture_output=True, text=True).stdout
    print(version.strip().splitlines()[-1])
    print(f"{'kernel':50} {'arch':>7} {'registers':>9} {'local':>6} {'shared':>6} {'narrow':>6}")
    faults = []
    for source in sources:
        for architecture in args.architecture:
            try:
                kernels = compile_for(source, architecture)
            except subprocess.CalledProcessError as error:
                print(f"error: nvcc cannot compile {source.name} for sm_{architecture}:\n{error.stderr}")
                return 1
            for k in kernels:
                line = f"{k.name:50} {k.architecture:>7} {k.registers:9} {k.local:6} {k.shared:6} {k.narrow:6}"
                print(line, flush=True)
                faults += [f"{k.name} on {k.architecture} {fault}" for fault in k.faults]
    print("\n".join(faults) or "no kernel spills; every WIDE kernel moves its rows 16 bytes at a time")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
