"""Packages and the optional native libraries; everything else is in pyproject.toml.

`kernels/` is installed as `mova_kernels`. It has no `__init__.py` of its own: the folder would else be importable as
`kernels` from the repository's root, and hide the public package of that name.

MOVA_BUILD_NATIVE says whether `csrc/` is compiled with CMake into `mova_kernels._C`, and `csrc/fake_cuda` into
`mova_kernels._fake_cuda` (for rehearsals): `1` builds or fails, `auto` builds where CMake and a C++ compiler work and
installs without it where not, unset or `0` does not try. MOVA_BUILD_CUDA says the same of `csrc/cuda/` and
`mova_kernels._cuda`, which takes nvcc. Nothing here looks at the machine's devices.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
# Each library: the variable that asks for it, and the folder of its CMakeLists.txt.
LIBRARIES = {
    "mova_kernels._C": ("MOVA_BUILD_NATIVE", ROOT),
    "mova_kernels._cuda": ("MOVA_BUILD_CUDA", ROOT / "csrc" / "cuda"),
    "mova_kernels._fake_cuda": ("MOVA_BUILD_NATIVE", ROOT / "csrc" / "fake_cuda"),
}
# Made of torch's inner interfaces, which change between its versions: where it does not compile, all else is installed.
OPTIONAL = {"mova_kernels._fake_cuda"}


class CMakeBuild(build_ext):
    """Build each library with CMake, all of them at the same time: configuring one keeps a single core busy."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = True

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / ext.name.rpartition(".")[2]
        configure = ["cmake", "-S", LIBRARIES[ext.name][1], "-B", build, "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DMOVA_OUTPUT={target}"]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", build, "--parallel"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:  # no cmake, or no compiler
            raise CompileError(f"{ext.name}: {error}") from error


def extensions() -> list[Extension]:
    wanted = []
    for name, (variable, _) in LIBRARIES.items():
        wish = os.environ.get(variable, "0")
        if wish not in ("0", "1", "auto"):
            sys.exit(f"error: {variable} is '{wish}'; it takes 0, 1 or auto")
        if wish != "0":
            # The limited API: one file serves every Python from 3.11 on.
            wanted.append(Extension(name, sources=[], py_limited_api=True, optional=wish == "auto" or name in OPTIONAL))
    return wanted


setup(
    packages=[
        *find_packages(include=["mova_engine", "mova_engine.*"]),
        "mova_kernels",
        *(f"mova_kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"mova_kernels": "kernels"},
    package_data={
        "mova_engine": [
            "py.typed",
            "__init__.pyi",
            "config/recipes/*.yaml",
            "config/curation_recipes/*.yaml",
            "curation/captions/*.yaml",
            "predict/*.toml",
            "predict/*.yaml",
            "evaluation/*.yaml",
            "evaluation/votes/page/vote.*",
            "inference/prompts/*.yaml",
            "serving/page/*.*",
        ],
        "mova_kernels": ["tiles/*.json"],
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": CMakeBuild},
)
