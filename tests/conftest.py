"""What every test gets: fixed seeds, one thread, poisoned memory; and the reasons why a test cannot run here.

torch is imported by what needs it: the process that hands out tests to others does not.
"""

import functools
import gc
import importlib.util
import os
import random
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Programs that tests start use one thread too: the runner's processes already keep the cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--long", action="store_true", help="also run what a quick loop can do without (make test-long)")
    parser.addoption("--dry", action="store_true", help="also rehearse runs in processes of their own (make test-dry)")
    parser.addoption("--kernels", action="store_true", help="also run GPU kernels without a GPU (make test-kernels)")
    parser.addoption("--networks", action="store_true", help="also run scores' networks (make test-scores)")
    parser.addoption("--serving", action="store_true", help="also start servers and a browser (make test-serve)")
    parser.addoption("--worlds", help="also run several processes, on cpu, standin or npu (make test-ranks)")
    parser.addoption("--device", default="cpu", help="run the operator and model suites on cpu, cuda or npu")


def _no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no NVIDIA GPU that this torch can use"


def _no_npu() -> str | None:
    if importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed; `make test-npu` runs these on an emulated NPU"
    from mova_engine.backend import describe_backend

    return describe_backend("npu").unavailable()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Keep the garbage collector from what is imported and collected: half a million objects that stay to the end,
    which it would visit time and again, here and in every test that collects.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config, items):
    reasons = {
        "slow": None if config.getoption("--slow") else "takes minutes; run with --slow",
        "long": None if config.getoption("--long") else "costs seconds; `make test-long`",
        "dry": None if config.getoption("--dry") else "rehearses a run in a process of its own; `make test-dry`",
        "kernels": None if config.getoption("--kernels") else "runs a GPU's kernels without one; `make test-kernels`",
        "networks": None if config.getoption("--networks") else "runs networks of official size; `make test-scores`",
        "serving": None if config.getoption("--serving") else "starts servers; `make test-serve`",
        "ranks": None if config.getoption("--worlds") else "runs in several processes; `make test-ranks`",
        "gpu": _no_gpu(),
        "npu": _no_npu(),
    }
    for item in items:
        if "worlds" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ranks)
        for name, reason in reasons.items():
            # Not its keywords: those contain the names of folders too, such as the one that holds the checkout.
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


# Tests that take longer to prepare than to run: worlds of processes; what imports diffusers, transformers, peft or the
# compiler; what reads the syntax trees of all files, or compares with the reference's towers.
_PREPARED_ONCE = {
    "worlds": ("tests/distributed/",),
    "diffusers": (
        "tests/adapters/",
        "tests/codecs/",
        "tests/weights/",
        "tests/bench/test_encode.py",
        "tests/diffusion/test_solvers.py",
        "tests/inference/test_encoded_clips.py",
        "tests/memory/test_quantised_folders.py",
        "tests/predict/test_sizes.py",
        "tests/train/test_adapters.py",
    ),
    "compiler": ("tests/models/test_compile.py", "tests/models/test_towers.py", "tests/ops/test_native.py"),
    "source": ("tests/test_layers.py", "tests/test_names.py", "tests/test_style.py", "tests/test_packaging.py"),
    "towers": ("tests/doctor/test_doctor.py", "tests/parity/test_builtin.py"),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadfile the files that share an expensive preparation go to one process."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrPreparation(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((name for name, paths in _PREPARED_ONCE.items() if file.startswith(paths)), file)

    return ByFileOrPreparation(config, log)


@pytest.fixture(autouse=True)
def _reproducible():
    """Seed every generator, use one thread, fill uninitialised memory with NaN so that reading it cannot go unseen.

    The poison needs PyTorch's deterministic mode; operations without a deterministic form only warn.
    """
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads, scheduling = torch.get_num_threads(), os.sched_getscheduler(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    assert os.sched_getscheduler(0) == scheduling, "the test left this process with another scheduling policy"
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


# What a program that a person starts does on these signals. nohup ignores SIGHUP and a shell's `&` ignores SIGINT for
# what they start, and a command that ends leaves them ignored: its process has nothing left to do, but this one has.
_USUAL_HANDLERS = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


@pytest.fixture(autouse=True)
def _usual_stop_signals():
    """Each test begins with the usual handlers of stop signals, however the tests were started, and leaves no other."""
    before = {number: signal.signal(number, usual) for number, usual in _USUAL_HANDLERS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def backend(request):
    """The device under test: `pytest --device cuda`."""
    from mova_engine.backend import get_backend

    return get_backend(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def reference_towers_once():
    """What the reference operators make of the built-in towers is computed once for all tests."""
    from mova_engine.parity import builtin

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "reference_towers", functools.cache(builtin.reference_towers))
        yield


@pytest.fixture
def few_operators(request, monkeypatch):
    """The built-in parity looks at some operators: `tests/ops` judges all of them. With --slow at all."""
    from mova_engine.ops import OPERATORS
    from mova_engine.parity import builtin

    if not request.config.getoption("--slow"):
        few = ("rms_norm", "gate_residual_norm", "merge_lse", "adamw", "clip_grad_norm")
        monkeypatch.setattr(builtin, "OPERATORS", {name: OPERATORS[name] for name in few})


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The recorded reference cases that travel with the project."""
    return ROOT / "tests" / "data" / "golden"


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Recorded reference cases (`golden/`) and real clips (`media/`), too large for the repository; skips without them.

    Looked for in the environment variable MOVA_SHARED, then beside the checkout.
    """
    folder = Path(os.environ.get("MOVA_SHARED") or ROOT.parent / "shared")
    if not (folder / "golden").is_dir():
        pytest.skip(f"the shared reference folder is not at {folder}; MOVA_SHARED can name it")
    return folder
