"""The doctor: pitfalls among packages, what it does when a check fails, its report, and the command itself."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from mova_engine import cli
from mova_engine.backend import describe_backend, get_backend
from mova_engine.backend.health import NOTE, OK, PROBLEM, Finding, Surroundings
from mova_engine.doctor import checks, self_test
from mova_engine.doctor.examination import Check, Examination, Report, choose_device, examine
from mova_engine.doctor.findings import as_json, as_text
from mova_engine.doctor.packages import PITFALLS, examine_packages
from mova_engine.errors import MovaError, redact


def here(**changes):
    return Examination(get_backend("cpu"), Surroundings(**changes))


def pitfalls(machine):
    return [f.what for f in examine_packages(Examination(get_backend("cpu"), machine.around())) if f.level != OK]


def test_a_clean_machine_has_no_pitfall(machine):
    machine.record("torch", "2.13.0+cpu")
    machine.record("torchvision", "0.28.0+cpu", requires=("torch==2.13.0",))
    machine.record("opencv-python-headless", "4.14.0.94")
    assert pitfalls(machine) == []


def install_apex(machine):
    machine.record("apex", "0.9.10")
    machine.module("apex")


def install_flash_attn_4(machine):
    machine.record("flash-attn-4", "4.0.0b1")
    machine.module("flash_attn", "cute/__init__.py")


def install_cuda_torchvision(machine):
    machine.record("torch", "2.13.0+cpu")
    machine.record("torchvision", "0.28.0", requires=("torch==2.13.0", "numpy"))


def install_old_torchaudio(machine):
    machine.record("torch", "2.13.0", requires=("nvidia-nccl-cu13",))
    machine.record("torchaudio", "2.9.0", requires=("torch==2.9.0",))


def install_both_tritons(machine):
    machine.record("triton", "3.6.0")
    machine.record("triton-ascend", "3.2.0")
    machine.module("triton", "backends/ascend/__init__.py", "backends/__init__.py")


def install_two_opencvs(machine):
    machine.record("opencv-python", "4.14.0")
    machine.record("opencv-python-headless", "4.14.0")


def install_two_nccls(machine):
    machine.record("nvidia-nccl-cu12", "2.29.3")
    machine.record("nvidia-nccl-cu13", "2.29.7")


@pytest.mark.parametrize(
    "install, words",
    [
        (install_apex, "not NVIDIA Apex"),
        (install_flash_attn_4, "without flash_attn_func"),
        (install_cuda_torchvision, "torchvision 0.28.0 is no CPU build"),
        (install_old_torchaudio, "torchaudio 2.9.0 is for torch 2.9.0"),
        (install_both_tritons, "its backends now: ascend"),
        (install_two_opencvs, "overwrite each other's cv2"),
        (install_two_nccls, "undefined NCCL symbols"),
    ],
)
def test_pitfalls(machine, install, words):
    install(machine)
    (what,) = pitfalls(machine)
    assert words in what


def test_the_real_packages_are_none(machine):
    install_apex(machine)
    machine.module("amp_C")
    install_flash_attn_4(machine)
    machine.module("flash_attn", "flash_attn_interface.py")
    assert pitfalls(machine) == []


def test_every_pitfall_says_what_to_do(machine):
    for install in (install_apex, install_flash_attn_4, install_cuda_torchvision, install_both_tritons):
        install(machine)
    install_two_opencvs(machine)
    found = [finding for pitfall in PITFALLS for finding in pitfall(machine.around().packages)]
    assert len(found) == len(PITFALLS) and all(finding.do for finding in found)


def test_requirements_are_those_of_the_package(machine):
    machine.record("mova-engine", "0.1.0", ("torch>=2.7", "av>=18", 'diffusers>=0.35; extra == "codecs"'))
    machine.record("torch", "2.6.0")
    machine.record("diffusers", "0.30.0")
    found = checks.examine_versions(Examination(get_backend("cpu"), machine.around()))
    text = {finding.what: finding.level for finding in found}
    assert text["torch 2.6.0 is older than the engine works with"] == PROBLEM
    assert text["av is not installed"] == PROBLEM
    assert text["diffusers 0.30.0 is older than the engine works with"] == NOTE
    assert any("2.6.0 is untested" in what for what in text)


def test_a_device_package_that_breaks_import_torch_is_found_for_every_device(machine, monkeypatch):
    """As a torch_npu without CANN does: `import torch` itself fails, so that nothing of the engine can start."""
    machine.record("torch_npu", "2.13.0", autoload=True)
    machine.module("torch_npu", text="raise ImportError('libhccl.so: cannot open shared object file')\n")
    around = machine.around()
    around.packages.path.extend(sys.path)
    around = Surroundings(around.packages, dict(os.environ))
    around.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    # The process that imports torch is the same for both devices: it runs once.
    run, done = checks.subprocess.run, []
    monkeypatch.setattr(
        checks.subprocess, "run", lambda *a, **k: done[0] if done else done.append(run(*a, **k)) or done[0]
    )
    for device, level in (("cpu", NOTE), ("npu", PROBLEM)):
        (found,) = checks.examine_import(Examination(describe_backend(device), around))
        assert found.level == level and "torch_npu too: ImportError: libhccl.so" in found.what
        assert "export TORCH_DEVICE_BACKEND_AUTOLOAD=0" in found.do
    around.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    assert checks.examine_import(Examination(get_backend("cpu"), around)) == []


def test_small_shared_memory_and_granted_cpus(machine):
    machine.write("sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert checks.usable_cpus(machine.around()) == 1
    torch.set_num_threads(2)  # the fixture of every test restores it
    (found,) = checks.examine_threads(Examination(get_backend("cpu"), machine.around()))
    assert found.level == NOTE and "OMP_NUM_THREADS=1" in found.do


def test_a_folder_that_cannot_be_written_to(machine, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = checks.examine_folders(Examination(get_backend("cpu"), machine.around()))
    assert found[0].level == PROBLEM and "--out" in found[0].do


def test_a_failing_check_is_a_finding_and_the_rest_goes_on(capsys):
    def fails(_):
        raise OSError("the disk is on fire\nand more")

    def refuses(_):
        raise MovaError("no such folder")

    ran = []
    checklist = (
        Check("a", fails),
        Check("b", refuses, gate=True),
        Check("c", lambda _: ran.append("c") or []),
        Check("d", lambda _: ran.append("d") or [], loads=True),
    )
    report = examine(here(), checklist)
    assert [(name, f.level) for name, f in report.findings] == [("a", PROBLEM), ("b", PROBLEM), ("left out", NOTE)]
    assert report.findings[0][1].what == "OSError: the disk is on fire"
    assert ran == ["c"] and "d" in report.findings[-1][1].what and not report.usable
    assert capsys.readouterr().err == ""
    examine(here(), checklist[:1], trace=True)
    assert "the disk is on fire" in capsys.readouterr().err


def test_every_check_has_something_to_say_here():
    """On the machine that runs the tests nothing may be found wrong but what its own set-up leaves out."""
    report = examine(here(), checks.CHECKS)
    assert report.usable, as_text(report)
    named = {name for name, _ in report.findings}
    assert {check.name for check in checks.CHECKS} - named <= {"import torch", "installation", "environment"}
    assert all(finding.do for _, finding in report.findings if finding.level == PROBLEM)


@pytest.mark.usefixtures("reference_towers_once", "few_operators")
def test_the_self_test_passes(backend, golden_dir):
    report = examine(Examination(backend, golden=golden_dir), checks.SELF_TEST)
    assert report.usable, as_text(report)
    assert "379 compared" in as_text(report)


@pytest.mark.usefixtures("reference_towers_once")
def test_the_self_test_fails_with_a_wrong_operator(monkeypatch):
    real = self_test.bind

    def bind(backend):
        table = real(backend)
        return table.replaced(bias_gelu=lambda x, b: torch.nn.functional.gelu(x + b))

    monkeypatch.setattr(self_test, "bind", bind)
    found = self_test.examine_towers(here())
    assert any(f.level == PROBLEM and "out.video" in f.what and f.do for f in found)


def test_the_device_that_the_machine_is_meant_to_serve_is_examined_and_not_loaded_to_find_out(machine, monkeypatch):
    def loaded(_):
        raise AssertionError("loaded")

    machine.record("torch", "2.12.0+cpu")
    machine.record("torch_npu", "2.13.0")
    monkeypatch.setattr(type(describe_backend("npu")), "unavailable", loaded)
    assert choose_device(machine.around()).name == "npu"


def test_reports_tell_nothing_of_the_user(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-node-17")
    home, there = Path.home(), "/" + "home/anna/lib/libhccl.so"
    text = f"{home}/x.so, {there}; gpu-node-17:29500 at 10.1.2.3:29500, {sys.prefix}/lib, 2.13.0"
    assert redact(text) == "~/x.so, ~/lib/libhccl.so; <host>:29500 at <address>, <python>/lib, 2.13.0"


def test_both_forms_of_a_report():
    findings = (("a", Finding(OK, "fine")), ("b", Finding(PROBLEM, "broken", "mend it")))
    report = Report("cpu", findings)
    assert as_text(report).splitlines()[-1] == "device cpu: NOT usable (1 ok, 0 note, 1 problem)"
    assert "> mend it" in as_text(report) and "\x1b" not in as_text(report) and "\x1b[31m" in as_text(report, True)
    content = json.loads(as_json(report))
    assert content["usable"] is False
    assert content["findings"][1] == {"check": "b", "level": "problem", "what": "broken", "do": "mend it"}


def test_the_command_is_quiet_about_devices_that_nobody_asked_for(capsys):
    assert cli.main(["doctor", "--device", "cpu", "--no-self-test"]) == 0
    shown = capsys.readouterr().out
    assert "device cpu: usable" in shown and "torch_npu" not in shown and "\x1b" not in shown


def test_findings_are_printed_as_they_are_made(capfd, monkeypatch):
    """A driver that hangs must not hide what was found before it."""
    printed = []

    def hangs(_):
        printed.append(capfd.readouterr().out)
        return [Finding(OK, "came back")]

    checklist = (Check("first", lambda _: [Finding(NOTE, "seen", "do")]), Check("second", hangs))
    monkeypatch.setattr("mova_engine.doctor.visit.CHECKS", checklist)
    assert cli.main(["doctor", "--device", "cpu", "--no-self-test"]) == 0
    assert "first:" in printed[0] and "> do" in printed[0] and "second:" not in printed[0]
    assert "came back" in capfd.readouterr().out


def test_an_unknown_device_suggests():
    with pytest.raises(MovaError, match="Did you mean 'npu'"):
        cli.main(["doctor", "--device", "nup"])


@pytest.mark.npu
def test_an_emulated_device_says_so():
    assert get_backend("npu").emulated() == ("ascend.emulator" in sys.modules)
