"""The checks, as data: what each looks at stands in its name; the order is that of the report."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from mova_engine import AUTOLOAD, __version__
from mova_engine.backend.compatibility import PYTHON_LEAST, TORCH_TESTED
from mova_engine.backend.health import (
    NOTE,
    OK,
    PROBLEM,
    Concern,
    Finding,
    Surroundings,
    Variable,
    examine_variables,
    release,
)
from mova_engine.doctor.examination import Check, Examination
from mova_engine.doctor.packages import examine_packages
from mova_engine.doctor.self_test import examine_golden, examine_media, examine_operators, examine_towers
from mova_engine.ops import OPERATORS, bind

GIB = 1 << 30
# A line of the engine's own requirements: name, least release, the extra that asks for it.
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[.*?\])?(?:>=([\d.]+))?[^;]*(?:;.*extra\s*==\s*['\"](\w+))?")
# Of the extras, those that training and sampling can use.
_EXTRAS = ("codecs", "triton")

VARIABLES = (
    Variable("OMP_NUM_THREADS", "CPU threads of each process; torchrun sets 1 where it is not set"),
    Variable("MKL_NUM_THREADS", "CPU threads of matrix products, before OMP_NUM_THREADS"),
    Variable(AUTOLOAD, "whether `import torch` loads devices that were installed beside it"),
    Variable(
        "TRITON_INTERPRET",
        "whether Triton kernels are interpreted",
        (Concern("1", NOTE, "kernels are interpreted, thousands of times slower", "unset it to train"),),
    ),
    Variable("TORCH_DISTRIBUTED_DEBUG", "how much torch.distributed checks and tells; DETAIL is slow"),
    Variable("GLOO_SOCKET_IFNAME", "the network interface by which CPU ranks find each other", private=True),
    Variable("MASTER_ADDR", "where the ranks meet", private=True),
    Variable("MASTER_PORT", "the port at which the ranks meet"),
    Variable("WORLD_SIZE", "how many ranks there are"),
    Variable("LOCAL_RANK", "which device of its host a rank uses"),
)


def examine_versions(examination: Examination) -> list[Finding]:
    """The engine's requirements against what is installed."""
    packages = examination.around.packages
    found = [
        Finding(
            OK,
            f"mova_engine {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        )
    ]
    if sys.version_info[:2] < PYTHON_LEAST:
        least = ".".join(map(str, PYTHON_LEAST))
        found.append(Finding(PROBLEM, f"Python {least} or newer is needed", f"install Python {least}"))
    installed, absent = [], []
    requirements = [m.groups() for line in packages.requires("mova-engine") if (m := _REQUIREMENT.match(line))]
    if not requirements:
        what = "the engine runs from a folder and is not installed: its requirements are not known"
        found.append(Finding(NOTE, what, "pip install -e FOLDER"))
    for name, least, extra in requirements:
        if extra and extra not in _EXTRAS:
            continue
        version, level = packages.version(name), NOTE if extra else PROBLEM
        (installed if version else absent).append(f"{name} {version}" if version else name)
        if version is None and not extra:
            found.append(Finding(level, f"{name} is not installed", f"pip install '{name}>={least}'"))
        elif version is not None and least and release(version) < release(least):
            what = f"{name} {version} is older than the engine works with"
            found.append(Finding(level, what, f"pip install '{name}>={least}'"))
    found.append(Finding(OK, ", ".join(installed) + (f"; not installed: {', '.join(absent)}" if absent else "")))
    torch_version = packages.version("torch") or ""
    if torch_version and release(torch_version)[:2] != release(TORCH_TESTED)[:2]:
        what = f"the engine's tests run with torch {TORCH_TESTED}; {torch_version} is untested"
        found.append(Finding(NOTE, what, f"pip install torch=={TORCH_TESTED}, should something behave oddly"))
    return found


def examine_import(examination: Examination) -> list[Finding]:
    """Whether `import torch` works as the user's programs do it: it loads device packages that lie beside it.

    One that does not fit, or whose own libraries are missing, makes it fail whatever device is wanted; the engine's own
    commands load none but their device's.
    """
    packages, environ = examination.around.packages, examination.around.environ
    loaded = ", ".join(packages.autoloaded())
    if not loaded or environ.get(AUTOLOAD) == "0":
        return []
    environ = {**environ, "PYTHONPATH": os.pathsep.join(filter(None, packages.path))}
    command = [sys.executable, "-c", "import torch"]
    child = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    if child.returncode == 0:
        return [Finding(OK, f"`import torch` loads {loaded} too")]
    errors = [line for line in child.stderr.splitlines() if re.match(r"\w*(Error|Exception)\b", line)]
    what = f"`import torch` fails, because it loads {loaded} too: {errors[0] if errors else 'it crashes'}"
    do = f"mend or uninstall {loaded}; programs for other devices work meanwhile with export {AUTOLOAD}=0"
    if examination.backend.vendor_package in packages.autoloaded():
        return [Finding(PROBLEM, what, do)]
    return [Finding(NOTE, f"{what}; the engine's own commands work, torchrun and other programs do not", do)]


def examine_installation(examination: Examination) -> list[Finding]:
    """The device's packages and drivers."""
    return examination.backend.examine_installation(examination.around)


def examine_folders(examination: Examination) -> list[Finding]:
    """Room for checkpoints, latents, temporary files, and what loader processes share."""
    around = examination.around
    found = []
    if not os.access(around.folder, os.W_OK):
        what = "the folder for runs cannot be written to"
        found.append(Finding(PROBLEM, what, "start from another one, or name it: --folder, --out"))
    folders = {"the folder for runs": around.folder, "the folder for temporary files": Path(tempfile.gettempdir())}
    for name, folder in folders.items():
        free = shutil.disk_usage(folder).free
        level = OK if free > 20 * GIB else NOTE if free > GIB // 4 else PROBLEM
        do = "" if level == OK else "make room: a checkpoint is the model and twice its size in moments"
        found.append(Finding(level, f"{free / GIB:.1f} GiB free in {name}", do))
    shared = around.root / "dev/shm"
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = size < GIB
        what = f"/dev/shm holds {size / GIB:.2f} GiB" + (", through which loader processes hand on clips" * small)
        do = "start the container with --shm-size=8g or --ipc=host, or use --loader.workers 0"
        found.append(Finding(NOTE if small else OK, what, do if small else ""))
    return found


def usable_cpus(around: Surroundings) -> int:
    """CPUs that this process may use: its affinity, and the time that a container grants it."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = around.root / "sys/fs/cgroup/cpu.max"
    if quota.is_file():
        granted, _, period = quota.read_text().strip().partition(" ")
        if granted.isdigit() and period.isdigit():
            count = min(count, max(1, int(granted) // int(period)))
    return count


def examine_threads(examination: Examination) -> list[Finding]:
    """CPU threads against the CPUs that there are."""
    threads, cpus = torch.get_num_threads(), usable_cpus(examination.around)
    if threads > cpus:
        what = f"torch uses {threads} CPU threads, but only {cpus} CPUs are granted to this process: they wait in turn"
        return [Finding(NOTE, what, f"export OMP_NUM_THREADS={cpus}, divided by the ranks on this host")]
    return [Finding(OK, f"{threads} CPU threads, {cpus} usable CPUs")]


def examine_environment(examination: Examination) -> list[Finding]:
    """Environment variables that change how training runs."""
    return examine_variables((*VARIABLES, *examination.backend.variables), examination.around.environ)


def examine_native(examination: Examination) -> list[Finding]:
    """The C++ kernels: built, loaded, and for which instruction set."""
    from mova_kernels import cpu

    serves = any(
        i.name == "native" and examination.backend.name in i.devices
        for o in OPERATORS.values()
        for i in o.implementations
    )
    reason = cpu.unavailable()
    if reason:
        reason, _, do = reason.partition("; ")
        return [Finding(NOTE if serves else OK, f"no native CPU kernels: {reason}", do)]
    threads = "torch's threads" if cpu.threaded() else "one thread"
    return [Finding(OK, f"native CPU kernels for {cpu.isa()} on {threads}; the CPU has {', '.join(cpu.features())}")]


def examine_device(examination: Examination) -> list[Finding]:
    """The device itself: there, named, versions as its libraries tell them."""
    backend = examination.backend
    reason = backend.unavailable()
    if reason:
        what, _, do = reason.partition("; ")
        return [Finding(PROBLEM, what, do)]
    backend.prepare()
    versions = [f"{name} {version}" for name, version in backend.versions().items()]
    found = [Finding(OK, "; ".join([backend.describe(), *versions]))]
    if backend.emulated():
        what = "software stands in for this device: results are emulated, and no timing is a measurement"
        found.append(Finding(NOTE, what))
    if not (torch.distributed.is_available() and torch.distributed.is_backend_available(backend.collectives)):
        what = f"this torch has no {backend.collectives}: one device only"
        found.append(Finding(NOTE, what, "install a build of torch with distributed support"))
    return found


def examine_memory(examination: Examination) -> list[Finding]:
    """Free memory of the device, and whether something else sits in it."""
    free, whole = examination.backend.free_memory()
    what = f"{free / GIB:.1f} of {whole / GIB:.1f} GiB of memory free"
    if free < 2 * GIB:
        return [Finding(NOTE, what, "end what else uses it; nano needs about 2 GiB")]
    if free < whole / 2:
        return [Finding(NOTE, f"{what}: other processes use the rest", "end them before a large run")]
    return [Finding(OK, what)]


def examine_operator_table(examination: Examination) -> list[Finding]:
    """The operators that training would use, and those of this device that were refused."""
    backend = examination.backend
    table = bind(backend, dtypes=(torch.bfloat16,))
    found = [Finding(OK, ", ".join(c.label for c in table.choices))]
    refused: dict[tuple[str, str], list[str]] = {}
    for choice in table.choices:
        meant = {i.name for i in OPERATORS[choice.operator].implementations if backend.name in i.devices}
        for name, reason in choice.refused:
            if name in meant:
                refused.setdefault((name, reason), []).append(choice.operator)
    for (name, reason), operators in refused.items():
        what, _, do = reason.partition("; ")
        found.append(Finding(NOTE, f"without {name} ({what}): {', '.join(operators)}", do))
    return found


def examine_precision(examination: Examination) -> list[Finding]:
    """Shortcuts in float32 maths."""
    reports = examination.backend.precision_report()
    if not reports:
        return [Finding(OK, "float32 is float32: this device has no shortcut")]
    found = []
    for report in reports:
        what = f"{report.switch}: {'on' if report.was_on else 'off'}"
        do = "--exact-fp32 switches it off for training; parity always does" if report.was_on else ""
        found.append(Finding(NOTE if report.was_on else OK, what, do))
    return found


CHECKS = (
    Check("versions", examine_versions, gate=True),
    Check("import torch", examine_import, gate=True),
    Check("installation", examine_installation, gate=True),
    Check("packages", examine_packages),
    Check("folders", examine_folders),
    Check("threads", examine_threads),
    Check("environment", examine_environment),
    Check("native library", examine_native),
    Check("device", examine_device, gate=True, loads=True),
    Check("memory", examine_memory, loads=True),
    Check("operators", examine_operator_table, loads=True),
    Check("precision", examine_precision, loads=True),
)
# The self test: some ten seconds.
SELF_TEST = (
    Check("test: operators", examine_operators, loads=True),
    Check("test: towers", examine_towers, loads=True),
    Check("test: recorded cases", examine_golden, loads=True),
    Check("test: mp4", examine_media, loads=True),
)
