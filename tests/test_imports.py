"""Importing acts on nothing: no output, no torch until it is needed, no optional package ever."""

import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import mova_engine

# Optional packages, installed here or not. What is installed besides core dependencies is added to them.
OPTIONAL = {
    *("accelerate", "amp_C", "apex", "bitsandbytes", "diffusers", "flash_attn", "gradio", "hf_kernels", "kernels"),
    *("liger_kernel", "mindiesd", "onnxruntime", "peft", "polars", "ray", "sageattention", "swanlab", "torch_npu"),
    *("torchao", "torchaudio", "torchcodec", "torchvision", "trackio", "transformer_engine", "transformers", "triton"),
    *("soxr", "speechmos", "wandb", "xformers"),
}
# Runs first in a child process: the names in `absent` cannot be found, as if they were not installed.
HIDE = """
import sys

class Hiding:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *args):
        return None if name.split(".")[0] in absent else self.finder.find_spec(name, *args)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


def _required_by(*distributions: str) -> set[str]:
    """Normalised names of distributions, of what they depend on, and so on, without extras."""
    found, queue = set(), list(distributions)
    while queue:
        name = queue.pop().lower().replace("_", "-").replace(".", "-")
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # a requirement for another platform
        found.add(name)
        for requirement in map(Requirement, requires):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return found


def not_required_by(*distributions: str) -> set[str]:
    """Top-level import names of everything that an installation of these distributions does not bring."""
    core = _required_by(*distributions)
    others = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not any(owner.lower().replace("_", "-").replace(".", "-") in core for owner in owners)
    }
    own = {"setuptools", "pkg_resources", "_distutils_hack", "__editable___mova_engine_finder"}
    return others - own - {"mova_engine", "mova_kernels"}


def _not_core() -> set[str]:
    return OPTIONAL | not_required_by("mova-engine")


def _run(code: str, tmp_path) -> None:
    child = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout == "" and child.stderr == "", "importing must print nothing"


@pytest.mark.long
def test_every_module_imports_without_any_optional_package(tmp_path):
    code = (
        f"absent = {sorted(_not_core())!r}\n{HIDE}"
        + """
import importlib, pkgutil
import mova_engine

def failed(name): raise
seen = [m.name for m in pkgutil.walk_packages(mova_engine.__path__, "mova_engine.", onerror=failed)]
for name in seen:
    importlib.import_module(name)
assert len(seen) > 20, seen
import mova_kernels.cpu
loaded = {name.split(".")[0] for name in sys.modules} & set(absent)
assert not loaded, loaded
"""
    )
    _run(code, tmp_path)


def test_an_optional_import_would_be_noticed(tmp_path):
    code = (
        f"absent = {sorted(_not_core())!r}\n{HIDE}"
        + """
import importlib.util
for name in absent:
    assert importlib.util.find_spec(name) is None, name
try:
    import transformers
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("transformers was imported")
"""
    )
    _run(code, tmp_path)


# What measures a card imports these distributions and what they bring, and nothing else.
MEASURING = ("torch", "triton", "numpy", "safetensors")
MEASURES = (
    "bench.__main__",
    *(f"bench.card.card_{name}" for name in ("worker", "checks", "operators", "steps", "report")),
)


def test_what_measures_a_card_needs_four_packages(tmp_path):
    code = (
        f"absent = {sorted(not_required_by(*MEASURING))!r}\n{HIDE}"
        + f"""
import importlib
assert {{"rich", "yaml", "cyclopts", "av", "scipy"}} <= set(absent), absent
for name in {MEASURES!r}:
    importlib.import_module("mova_engine." + name)
"""
    )
    _run(code, tmp_path)


LIGHT = ("mova_engine", "mova_engine.config.train", "mova_engine.predict.search", "mova_engine.cli", "mova_engine.ops")


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module, tmp_path):
    _run(f"import sys, {module}\nassert not {{'torch', 'numpy'}} & set(sys.modules)", tmp_path)


def test_public_names_are_imported_when_they_are_asked_for(tmp_path):
    code = """
import sys, mova_engine
assert set(mova_engine.__all__) <= set(dir(mova_engine))
mova_engine.load_config, mova_engine.MovaConfig, mova_engine.MemoryConfig, mova_engine.choose, mova_engine.OPERATORS
assert not {"torch", "numpy"} & set(sys.modules)
assert not hasattr(mova_engine, "Pipelines")
"""
    _run(code, tmp_path)
    for name in mova_engine.__all__:
        assert callable(getattr(mova_engine, name)) or name == "OPERATORS", name


def test_type_checkers_are_told_the_same_names():
    """The stub beside the package, which type checkers read in its place, has each public name from the same module."""
    stub = ast.parse(Path(mova_engine.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    told = {
        alias.asname: node.module.removeprefix("mova_engine.")
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == mova_engine._PUBLIC


@pytest.mark.skipif(torch.version.cuda is not None, reason="with a CUDA build of torch they may be there and work")
@pytest.mark.parametrize("name", ["torchvision", "torchaudio"])
def test_no_cuda_companion_beside_a_cpu_torch(name):
    # Their public builds are for CUDA; beside a CPU torch they break diffusers, transformers and peft at import.
    assert importlib.util.find_spec(name) is None, f"uninstall {name}: nothing here needs it"


@pytest.mark.long
def test_a_run_in_one_process_starts_without_torchs_compiler_and_sharding():
    """They take longer to import than torch itself: what a recipe binds, builds and steps must not need them."""
    code = """
import sys, torch
import mova_engine.inference.__main__, mova_engine.train.__main__
from mova_engine.backend import get_backend
from mova_engine.config.model import get_preset
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
ops = bind(get_backend("cpu"))
bind(get_backend("cpu"), training=False)
Mova(get_preset("nano"), ops, "meta")
weight = torch.ones(2, requires_grad=True)
optimizer = ops.adamw([weight], lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
weight.grad = torch.ones(2)
optimizer.step()
heavy = ("torch._dynamo", "torch._inductor", "torch.distributed.checkpoint", "torch.distributed.fsdp")
print([name for name in heavy if name in sys.modules])
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (child.returncode, child.stdout.strip()) == (0, "[]"), child.stderr[-2000:]
