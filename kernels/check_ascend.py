"""`python -m mova_kernels.check_ascend`: lower every Triton kernel for an Ascend 910B2, which need not be there.

The operators' launches at MOVA's widths, as `triton_variants` finds them, go through triton-ascend and BiSheng IR:
Triton IR, linalg, HFusion, HIVM with its plan of the 192 KB unified buffer and its synchronisation. The last step, from
there to a binary, is CANN's own `hivmc`, which is not on PyPI: a kernel passes when that program's absence is the only
complaint, when its buffers fit twice (BiSheng tries again with single ones, and says so), and when its transfers are
blocks (triton-ascend moves single elements where it does not see the pattern of the addresses). Without the last two a
kernel is correct and slow. Exit status 1 when one does not pass.

Needs triton-ascend and ascendnpu-ir (`make check-ascend-kernels` installs them in an environment of their own, because
triton-ascend takes the place of triton); neither an NPU nor CANN.
"""

import argparse
import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from mova_kernels.triton_variants import DTYPES, WIDTHS, needs_fp8, specialise, variants

ARCH = "Ascend910B2"
# Where BiSheng stops when everything before succeeded; and what it says of a machine without CANN.
_REACHED = "External hivmc run fails, returning module before running external compiler"
_WITHOUT_CANN = (
    _REACHED,
    "Cannot find hivmc",
    "Failed to run `hivmc --version`",
    "Failed to detect hivmc version",
    "Failed to run BiShengIR pipeline",
)
# What announces triton's own report, not an error.
_FRAME = ("[ERROR][Triton]", "encounters error")
# How triton-ascend marks the loop over elements that it makes of an access.
_ELEMENTWISE = "DiscreteMemAccess"


class Verdict(NamedTuple):
    """passed, and the compiler's own words where not."""

    passed: bool
    message: str


def unavailable() -> str | None:
    """Why kernels cannot be lowered with what is installed; None when they can."""
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec("triton.backends.ascend") is None:
        return "the installed triton is not triton-ascend; `make check-ascend-kernels` has an environment with it"
    if importlib.util.find_spec("ascendnpuir") is None:
        return "the package ascendnpu-ir is not installed; `make check-ascend-kernels` has an environment with it"
    return None


def prepare() -> None:
    """Let triton-ascend find BiSheng's compiler, and name the NPU that its driver would ask a device for."""
    from triton.backends import backends

    folder = str(Path(importlib.util.find_spec("ascendnpuir").origin).parent / "bin")
    if folder not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]

    class Described:
        """In place of the driver's NPUUtils, which needs CANN to be built."""

        def get_arch(self) -> str:
            return ARCH

    backends["ascend"].compiler.add_stages.__globals__["NPUUtils"] = Described


def source(launch):
    """The launch as Triton 3.2's compiler takes it."""
    from triton.backends.compiler import AttrsDescriptor
    from triton.compiler import ASTSource

    signature, constants, divisible = specialise(launch)
    places = [launch.kernel.arg_names.index(name) for name in divisible]
    properties = {"tt.divisibility": places, "tt.equal_to": []}
    attributes = AttrsDescriptor.from_dict({"arg_properties": properties, "cls": AttrsDescriptor.__name__})
    return ASTSource(launch.kernel, signature, constants, attributes)


def judge(message: str, linalg: str) -> Verdict:
    """The verdict on a lowering that ended with `message`, and whose linalg form was `linalg`."""
    known = (*_WITHOUT_CANN, *_FRAME)
    lines = [line.strip() for line in message.splitlines() if re.search("error|overflow", line, re.IGNORECASE)]
    own = [line for line in lines if not any(words in line for words in known)]
    if own or _REACHED not in message:
        return Verdict(False, "; ".join(own) or message.strip() or "the compiler gave no reason")
    found = linalg.count(_ELEMENTWISE)
    return Verdict(not found, f"{found} loops over single elements" if found else "")


def lower(launch) -> Verdict:
    """Lower one launch as far as is possible without CANN."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler.errors import CompilationError, MLIRCompilationError

    kept = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            triton.compile(source(launch), target=GPUTarget("npu", ARCH, 0), options={"num_warps": launch.warps})
            message = _REACHED  # CANN is here: it even became a binary
        except (CompilationError, MLIRCompilationError) as error:
            message = str(error)
        finally:
            os.environ.pop("TRITON_CACHE_DIR")
            if kept is not None:
                os.environ["TRITON_CACHE_DIR"] = kept
        return judge(message, "\n".join(path.read_text() for path in Path(folder).rglob("*.ttadapter")))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mova_kernels.check_ascend", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES, help=f"default: {' '.join(DTYPES)}")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels with this in their name")
    args = parser.parse_args(argv)
    reason = unavailable()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    prepare()
    widths, failed, count = ", ".join(map(str, WIDTHS)), 0, 0
    print(f"{'kernel':62} {'widths':>10} {'dtype':8} {'tile':>8} verdict on {ARCH}")
    for dtype in args.dtype:
        for name, launch in variants(getattr(torch, dtype)).items():
            if args.only not in name or needs_fp8(launch):  # which the 910B series does not have
                continue
            verdict = lower(launch)
            count, failed = count + 1, failed + (not verdict.passed)
            tile = f"{launch.constants['ROWS']} x {launch.constants['COLS']}"
            print(f"{name:62} {widths:>10} {dtype:8} {tile:>8} {verdict.message or 'lowers'}", flush=True)
    print(f"{count - failed} of {count} lower; `hivmc`, the last step, belongs to CANN and was not run")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    raise SystemExit(main())
