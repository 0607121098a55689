"""Commands on machines whose torch_npu does not load: as real processes, each with a verdict and no stack."""

import json
import os
import subprocess
import sys

import pytest

from mova_engine.backend.health import NOTE, PROBLEM

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
# The ways in which a command starts: a module of its own, the installed script, the module of all commands.
SCRIPT = ("-c", "from mova_engine.cli import run; run()")
CLI = ("-mmova_engine.cli",)


@pytest.fixture
def started(machine):
    """`started("-m", "mova_engine.ops", ...)`: a Python that finds the machine's packages before the real ones."""

    def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(machine.site), os.environ.get("PYTHONPATH", "")])
        inherited = {name: value for name, value in os.environ.items() if name != AUTOLOAD}
        environment = {**inherited, "PYTHONPATH": path, **environment}
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return start


@pytest.fixture
def without_cann(machine):
    """torch_npu as it is until CANN's set_env.sh is sourced."""
    machine.record("torch_npu", "2.13.0", autoload=True)
    machine.module("torch_npu", text="raise ImportError('libhccl.so: cannot open shared object file')\n")


def problems(child: subprocess.CompletedProcess, level: str = PROBLEM) -> list[dict]:
    return [finding for finding in json.loads(child.stdout)["findings"] if finding["level"] == level]


@pytest.mark.long
def test_other_programs_fail_and_the_engine_leaves_them_alone(started, without_cann):
    library = f"import os, mova_engine, mova_engine.cli; assert {AUTOLOAD!r} not in os.environ; import torch"
    assert "Failed to load the backend extension: torch_npu" in started("-c", library).stderr


# The other two ways start the doctor below, for the CPU and without a device.
OPS = [("-m", "mova_engine.ops"), *(pytest.param((*way, "ops"), marks=pytest.mark.slow) for way in (SCRIPT, CLI))]


@pytest.mark.parametrize("how", OPS)
def test_commands_for_the_cpu_work(started, without_cann, how):
    child = started(*how, "--device", "cpu", **{AUTOLOAD: "1"})
    assert (child.returncode, child.stderr) == (0, "") and "attention" in child.stdout


@pytest.mark.long
def test_commands_for_the_npu_say_what_to_do(started, without_cann, tmp_path):
    train = ("-m", "mova_engine.train", "--recipe", "nano", "--out", str(tmp_path / "run"))
    child = started(*train, "--device", "npu")
    assert child.returncode == 2 and child.stderr.startswith("error: device 'npu' cannot be used: torch_npu does not")
    assert "libhccl.so" in child.stderr and "source CANN's set_env.sh" in child.stderr
    assert len(child.stderr.splitlines()) == 1


@pytest.mark.long
def test_the_doctor_on_a_cpu_notes_what_breaks_other_programs(started, without_cann):
    child = started(*SCRIPT, "doctor", "--device", "cpu", "--no-self-test", "--json")
    assert (child.returncode, child.stderr) == (0, "") and problems(child) == []
    (found,) = (note for note in problems(child, NOTE) if note["check"] == "import torch")
    assert "libhccl.so" in found["what"] and "torchrun and other programs do not" in found["what"]
    assert found["do"].endswith(f"export {AUTOLOAD}=0")


@pytest.mark.long
def test_training_without_a_named_device_says_why_the_npu_is_not_used(started, without_cann, tmp_path):
    recipe = ("--recipe", "nano", "--steps", "1", "--validation.every", "0", "--loader.synthetic-clips", "2")
    child = started("-m", "mova_engine.train", *recipe, "--loader.batch", "1", "--out", str(tmp_path / "run"))
    assert child.returncode == 0, child.stderr
    (told,) = (line for line in child.stdout.splitlines() if "npu" in line)
    assert told.startswith("warning: device 'npu' is there and cannot be used: torch_npu does not import (libhccl.so")


@pytest.mark.long
def test_the_doctor_without_a_named_device_examines_the_one_that_is_broken(started, without_cann):
    child = started(*CLI, "doctor", "--no-self-test")
    assert child.returncode == 1 and "libhccl.so" in child.stdout
    assert child.stdout.splitlines()[-2].startswith("device npu: NOT usable")
    assert "--device cpu" in child.stdout.splitlines()[-1]


# By default test_installation.py judges the pair in this process.
@pytest.mark.slow
@pytest.mark.parametrize("torch, torch_npu", [("2.13.0", "2.12.0"), ("2.12.0", "2.13.0")])
def test_the_doctor_with_a_torch_npu_for_another_torch(machine, started, torch, torch_npu):
    """The pair as its records tell it, on the path of a real process."""
    machine.record("torch", f"{torch}+cpu")
    machine.record("torch_npu", torch_npu, autoload=True)
    machine.module("torch_npu", text="raise ImportError('undefined symbol: _ZN5torch10ValueErrorC1EPKcz')\n")
    child = started("-m", "mova_engine.doctor", "--device", "npu", "--json")
    assert (child.returncode, child.stderr) == (1, "")
    imported, pair = problems(child)
    assert "`import torch` fails" in imported["what"] and "undefined symbol" in imported["what"]
    assert pair["what"].startswith(f"torch_npu {torch_npu} was built for torch {torch_npu}, but torch {torch}+cpu is")
    assert f"pip install torch_npu=={torch} " in pair["do"]
    assert str(machine.site.parent) not in child.stdout
