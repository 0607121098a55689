"""`make sanitize`: the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer, with the tests that run them.

`mova_kernels._C` is built from `csrc` with both into a temporary copy of the package, which the tests then import; the
CUDA kernels' host emulation is built with them too. Python is not instrumented, so that the sanitizers' libraries are
preloaded, and memory that Python never frees is no finding. Needs CMake and GCC. Exit status 1 if a test fails or a
sanitizer has found something, 2 without the tools.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -O1"
# What the tests run: the native CPU implementations of every operator, and the CUDA kernels' emulation.
RUNS = (("tests/ops", "-k", "native"), ("tests/cuda_kernels/test_host.py", "--kernels"))


def build(folder: Path) -> None:
    """A copy of the package in `folder`, its native library built with the sanitizers."""
    package = folder / "mova_kernels"
    shutil.copytree(ROOT / "kernels", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    configure = ["cmake", "-S", ROOT, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=None"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DMOVA_OUTPUT={package / '_C.abi3.so'}"]
    configure += [f"-DCMAKE_CXX_FLAGS={FLAGS}", "-DCMAKE_CXX_COMPILER=g++"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder / "build"], check=True, stdout=subprocess.DEVNULL)


def runtime(name: str) -> str:
    """The path of GCC's shared library `name`."""
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> int:
    missing = [name for name in ("cmake", "g++") if shutil.which(name) is None]
    if missing:
        print(f"error: {' and '.join(missing)} not found")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH")))),
            "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "MOVA_SANITIZE": "undefined",
        }
        code = "import mova_kernels.cpu as m; print(m.__file__, m.unavailable())"
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=folder
        )
        if found.stdout.split() != [f"{folder}/mova_kernels/cpu/__init__.py", "None"]:
            print(f"error: the instrumented library is not the one in use: {found.stdout}{found.stderr}")
            return 1
        results = [
            subprocess.run([sys.executable, "-m", "pytest", "-q", *run], env=environment, cwd=ROOT).returncode
            for run in RUNS
        ]
    return int(any(results))


if __name__ == "__main__":
    raise SystemExit(main())
