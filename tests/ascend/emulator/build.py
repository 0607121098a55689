"""Compiles the software CANN, once for each state of its sources, into a cache folder."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "cann"
# All symbols live in the first; the others are empty, but torch_npu asks the loader for them by name.
LIBRARIES = ("ascendcl", "hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel", "atb", "nnopbase", "opapi")
FLAGS = ("-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Werror", "-fPIC", "-fvisibility=hidden", "-shared")


def built() -> list[Path]:
    """The libraries in the order in which they must be loaded, compiled if need be. SystemExit without a compiler."""
    compiler = os.environ.get("CC", "cc")
    sources = sorted(SOURCES.iterdir())
    state = hashlib.sha256(repr((compiler, FLAGS)).encode())
    for path in sources:
        state.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mova_engine"
    folder = cache / f"ascend-emulator-{state.hexdigest()[:16]}"
    if not folder.exists():
        if shutil.which(compiler) is None:
            raise SystemExit(f"error: the Ascend emulator needs a C compiler, and there is no '{compiler}'; set CC")
        cache.mkdir(parents=True, exist_ok=True)
        # Renamed when whole: several processes may start at once.
        fresh = Path(tempfile.mkdtemp(dir=cache))
        _compile(compiler, [path for path in sources if path.suffix == ".c"], fresh)
        try:
            fresh.rename(folder)
        except OSError:
            shutil.rmtree(fresh)
    return [folder / f"lib{name}.so" for name in LIBRARIES]


def _compile(compiler: str, sources: list[Path], folder: Path) -> None:
    def run(name: str, *arguments: str | Path) -> None:
        output = folder / f"lib{name}.so"
        command = [compiler, *FLAGS, "-o", output, f"-Wl,-soname,lib{name}.so", *arguments]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            raise SystemExit(f"error: the Ascend emulator does not compile with '{compiler}':\n{child.stderr}")

    first, *others = LIBRARIES
    run(first, *sources, "-lpthread", "-lm")
    empty = folder / "empty.c"
    empty.write_text("typedef int nothing;\n", encoding="utf-8")
    for name in others:
        run(name, empty, "-Wl,--no-as-needed", f"-L{folder}", f"-l{first}", "-Wl,-rpath,$ORIGIN")
