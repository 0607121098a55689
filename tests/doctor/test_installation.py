"""Versions that fit and that do not, on machines made of records."""

import re
import sys

import pytest
import torch

from mova_engine.backend import NAMES, describe_backend, health_cuda, health_npu
from mova_engine.backend.compatibility import ASCEND, ASCEND_PYTHON, ASCEND_UNLISTED_CANN, NVIDIA_DRIVER
from mova_engine.backend.health import NOTE, OK, PROBLEM, examine_variables, release

CANN = "usr/local/Ascend/cann/x86_64-linux/ascend_toolkit_install.info"


def levels(findings):
    return [finding.level for finding in findings]


def ascend(machine, torch_npu="2.12.0", torch_version="2.12.0+cpu", cann="9.1.0", driver="25.5.0"):
    """A machine with everything an NPU needs, or without what is None."""
    if torch_version:
        machine.record("torch", torch_version)
    if torch_npu:
        machine.record("torch_npu", torch_npu, requires=(f"torch=={torch_npu[:6]}.*",), autoload=True)
    if cann:
        machine.write(CANN, f"package_name=Ascend-cann-toolkit\nversion={cann}\ninnerversion=V100\n")
        machine.environ["ASCEND_HOME_PATH"] = str(machine.root / "usr/local/Ascend/cann")
    if driver:
        machine.write("usr/local/Ascend/driver/version.info", f"Version={driver}\nascendhal_version=7.35\n")
    return health_npu.examine_installation(machine.around())


def test_a_published_combination_is_fine(machine):
    found = ascend(machine)
    assert levels(found) == [OK, OK, OK]
    assert "CANN 9.1.0 fits" in found[1].what and "driver 25.5.0" in found[2].what


@pytest.mark.parametrize("row", ASCEND, ids=lambda row: row.torch_npu)
def test_every_row_of_the_table_fits_itself(machine, row):
    assert set(levels(ascend(machine, row.torch_npu, row.torch, row.cann))) == {OK}


def test_torch_npu_for_another_torch_is_a_clear_verdict(machine):
    first = ascend(machine, "2.13.0", "2.12.0+cpu")[0]
    assert first.level == PROBLEM
    assert "torch_npu 2.13.0 was built for torch 2.13.0, but torch 2.12.0+cpu is installed" in first.what
    assert "pip install torch_npu==2.12.0" in first.do


def test_a_missing_torch_npu_names_the_one_to_install(machine):
    (found,) = ascend(machine, torch_npu=None, torch_version="2.13.0+cpu")
    assert found.level == PROBLEM and "torch_npu==2.13.0" in found.do


def test_another_patch_release_is_worth_a_note(machine):
    assert levels(ascend(machine, "2.7.1", "2.7.0+cpu", "8.3.RC1"))[0] == NOTE


@pytest.mark.parametrize("version, requires", [("2.12.0+cu130", ()), ("2.12.0", ("nvidia-nccl-cu13==2.29.7",))])
def test_torch_npu_does_not_load_beside_a_cuda_build(machine, version, requires):
    machine.record("torch", version, requires)
    first = ascend(machine, "2.12.0", torch_version=None)[0]
    assert first.level == PROBLEM and "ERR00007" in first.what and "CPU build" in first.do


@pytest.mark.parametrize(
    "torch_npu, cann, level, word",
    [
        ("2.9.0.post2", "8.5.0", NOTE, "older"),
        ("2.9.0", "9.1.0", NOTE, "newer"),
        ("2.9.0", "8.5.0", OK, "fits"),
        ("2.12.0.post2", "9.1.3", OK, "fits"),
        ("2.7.1", "8.3.RC1.alpha003", OK, "fits"),
        ("2.7.1.post6", "9.0.0", OK, "nearest row"),
        ("2.13.0", "9.1.0", OK, "nearest row"),
        ("2.15.0", "9.1.0", NOTE, "no table"),
    ],
)
def test_cann_is_judged_by_the_wheels_row(machine, torch_npu, cann, level, word):
    found = ascend(machine, torch_npu, release_text(torch_npu), cann)[1]
    assert (found.level, word in found.what) == (level, True), found


def release_text(version):
    return ".".join(map(str, release(version)[:3]))


def test_cann_without_its_environment_is_found_and_not_enough(machine):
    ascend(machine)
    del machine.environ["ASCEND_HOME_PATH"]
    found = health_npu.examine_installation(machine.around())[1]
    assert found.level == NOTE and "CANN 9.1.0 is installed" in found.what and "set_env.sh" in found.do


def test_no_driver_in_a_container(machine):
    assert "mounted" in ascend(machine, driver=None)[-1].what


def test_python_beyond_what_torch_npu_is_published_for(machine, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    found = ascend(machine, "2.9.0", "2.9.0", "8.5.0")
    assert any("published for Python up to 3.13" in finding.what for finding in found)


def test_the_table_is_whole():
    assert len({row.torch_npu for row in ASCEND}) == len(ASCEND)
    for row in ASCEND:
        assert row.torch_npu.startswith(row.torch), row
        assert release(row.torch)[:2] in ASCEND_PYTHON and len(release(row.cann)) >= 2
    assert not set(ASCEND_UNLISTED_CANN) & {row.torch_npu for row in ASCEND}
    assert list(NVIDIA_DRIVER.values()) == sorted(NVIDIA_DRIVER.values())


def test_the_page_on_ascend_shows_the_same_table(repo_root):
    shown = set()
    for line in (repo_root / "docs" / "ascend.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"2\.\d+\.\d", cells[0]):
            for cann, names in zip(("9.1", "9.0.0", "8.5.0", "8.3.RC1"), cells[1:], strict=True):
                wheels = [name.strip() for name in names.split(",") if name.strip()]
                full = [cells[0] + name if name.startswith(".") else name for name in wheels]
                shown |= {(name, cells[0], release(cann)[:2]) for name in full}
    assert shown == {(row.torch_npu, row.torch, release(row.cann)[:2]) for row in ASCEND}


def nvidia(machine, monkeypatch, driver, runtime):
    machine.record("torch", "2.13.0+cu130" if runtime else "2.13.0+cpu")
    monkeypatch.setattr(torch.version, "cuda", runtime)
    if driver:
        text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Sun Jul 27\nGCC version: 13\n"
        machine.write("proc/driver/nvidia/version", text)
    machine.environ["PATH"] = str(machine.work)
    return health_cuda.examine_installation(machine.around())


@pytest.mark.parametrize(
    "driver, runtime, level, words",
    [
        ("580.65.06", "13.0", OK, "driver 580.65.06 serves CUDA 13.0"),
        ("570.86.15", "13.0", PROBLEM, "too old"),
        ("570.86.15", "12.8", OK, "serves"),
        (None, "13.0", NOTE, "no NVIDIA driver"),
        ("580.65.06", None, PROBLEM, "without CUDA"),
    ],
)
def test_driver_against_the_build(machine, monkeypatch, driver, runtime, level, words):
    (found,) = nvidia(machine, monkeypatch, driver, runtime)
    assert found.level == level and words in found.what


def test_the_open_kernel_module_has_a_version_too(machine):
    machine.write(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.48.01  Release Build  (builder)\n",
    )
    assert health_cuda.find_driver(machine.around()) == "590.48.01"


@pytest.mark.parametrize("name", NAMES, ids="on-{}".format)
def test_variables_are_quiet_unless_set_and_their_concerns_can_arise(name):
    variables = describe_backend(name).variables
    assert len({variable.name for variable in variables}) == len(variables)
    for variable in variables:
        for concern in variable.concerns:
            assert concern.level in (NOTE, PROBLEM) and concern.what and concern.do
        found = examine_variables((variable,), {variable.name: "some-value"})
        assert [f.level for f in found] == [OK]
        assert ("some-value" in found[0].what) is not variable.private


@pytest.mark.parametrize(
    "name, value, level",
    [
        ("INF_NAN_MODE_FORCE_DISABLE", "1", PROBLEM),
        ("ASCEND_LAUNCH_BLOCKING", "1", NOTE),
        ("ASCEND_LAUNCH_BLOCKING", "0", OK),
        ("HCCL_CONNECT_TIMEOUT", "60", NOTE),
        ("HCCL_CONNECT_TIMEOUT", "120", OK),
        ("HCCL_CONNECT_TIMEOUT", "1200", OK),
        ("HCCL_EXEC_TIMEOUT", "300", NOTE),
        ("HCCL_EXEC_TIMEOUT", "1836", OK),
        ("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True", OK),
        ("PYTORCH_NPU_ALLOC_CONF", "max_split_size_mb:256,expandable_segments:True", NOTE),
        ("PYTORCH_NPU_ALLOC_CONF", "", NOTE),
    ],
)
def test_values_to_worry_about(name, value, level):
    (variable,) = [v for v in health_npu.VARIABLES if v.name == name]
    assert levels(examine_variables((variable,), {name: value} if value else {})) == [level]
