"""What gets installed, under which names, and what the optional native library reports."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from setuptools import build_meta

from mova_kernels.cpu import features, unavailable
from source_tree import ROOT, python_files


def _python(code: str, cwd: Path, *options: str, **environment: str) -> str:
    environment = {**os.environ, **environment}
    command = [sys.executable, *options, "-c", code]
    child = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-3000:]
    return child.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built without compiler or network, from a copy: building leaves files behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("mova_engine", "kernels", "csrc"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt"):
        shutil.copy(ROOT / name, copy / name)
    _python("from setuptools import build_meta; build_meta.build_wheel('dist')", copy, MOVA_BUILD_NATIVE="0")
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_wheel_holds_every_module_and_no_other_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in python_files("mova_engine"):
        assert path.relative_to(ROOT).as_posix() in names
    for path in python_files("kernels"):
        assert f"mova_kernels/{path.relative_to(ROOT / 'kernels').as_posix()}" in names
    pages = (ROOT / "mova_engine").rglob("page/*.*")
    for path in (*(ROOT / "mova_engine").rglob("*.yaml"), *pages):
        assert path.relative_to(ROOT).as_posix() in names
    assert "mova_engine/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mova_engine", "mova_kernels"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_imports_where_it_is_unpacked(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import mova_engine.ops as e, mova_kernels.cpu.native as n; print(e.__file__, n.__file__, n.unavailable())"
    paths = os.pathsep.join((str(tmp_path / "site"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    # -S: without it the development install would answer for what the wheel lacks.
    engine, kernels, *reason = _python(code, tmp_path, "-S", PYTHONPATH=paths).split(maxsplit=2)
    assert Path(engine).is_relative_to(tmp_path) and Path(kernels).is_relative_to(tmp_path)
    assert "make native" in reason[0]


def test_metadata_needs_no_torch(tmp_path):
    """Resolvers ask for the metadata before torch is there."""
    code = """
import sys
sys.modules["torch"] = None
from setuptools import build_meta
print(build_meta.get_requires_for_build_wheel())
"""
    assert "torch" not in _python(code, ROOT, MOVA_BUILD_NATIVE="1")


def _imports(name: str) -> bool:
    pattern = re.compile(rf"^\s*(import|from) {re.escape(name)}\b", re.M)
    return any(pattern.search(path.read_text(encoding="utf-8")) for path in python_files("mova_engine", "kernels"))


def test_every_dependency_is_used_and_pinned():
    modules = {"pyyaml": "yaml", "pillow": "PIL", "tensorboard": "torch.utils.tensorboard"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[\w-]+", line)[0] for line in project["dependencies"]]
    assert [name for name in names if not _imports(modules.get(name, name))] == []
    pins = "\n".join((ROOT / "requirements" / f"{name}.txt").read_text().lower() for name in ("torch", "core"))
    assert [name for name in names if not re.search(rf"^{name}==", pins, re.M)] == []


def test_public_package_named_kernels_is_not_shadowed(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("owner = 'public'\n")
    code = "import kernels, mova_kernels.cpu; print(kernels.owner)"
    assert _python(code, ROOT, PYTHONPATH=str(tmp_path)) == "public"
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.long
def test_libraries_do_not_take_our_folder_for_the_public_package():
    """transformers and diffusers probe for `kernels`; started in the repository's root they see our folder."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    code = "from transformers.utils import is_kernels_available as a; print(a())"
    elsewhere = _python(code, ROOT / "tests")
    assert _python(code, ROOT) == elsewhere


def test_every_folder_with_modules_is_a_package():
    for path in python_files("mova_engine"):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} would not be installed"


def test_native_features_are_those_the_kernel_lists():
    if unavailable():
        pytest.skip(unavailable())
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    flags = set(line.split(":")[1].split())
    needed = {
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
        "avx512_bf16": {"avx512f", "avx512_bf16"},
        "amx_bf16": {"amx_tile", "amx_bf16"},
    }
    assert set(features()) == {name for name, wanted in needed.items() if wanted <= flags}


def test_build_wish_is_checked():
    child = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "MOVA_BUILD_NATIVE": "yes"},
        capture_output=True,
        text=True,
    )
    assert child.returncode != 0 and "it takes 0, 1 or auto" in child.stderr


def test_build_backend_supports_editable_installs():
    assert hasattr(build_meta, "build_editable")
