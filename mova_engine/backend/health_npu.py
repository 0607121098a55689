"""Findings on Ascend NPUs: packages, CANN, driver, environment. Nothing of the vendor's is imported here."""

import ctypes
import re
import sys

from mova_engine.backend.compatibility import ASCEND, ASCEND_PYTHON, ASCEND_UNLISTED_CANN
from mova_engine.backend.health import NOTE, OK, PROBLEM, Concern, Finding, Surroundings, Variable, release

_SET_ENV = "source set_env.sh of the CANN that is installed (usually in /usr/local/Ascend/cann or ascend-toolkit)"


# A function of the software Ascend under tests/ascend, which no CANN has.
_EMULATOR_MARK = "emu_set_single_op"


def emulated() -> bool:
    """Whether the CANN in this process is the tests' emulator; False before torch_npu is imported, which loads it."""
    return "torch_npu" in sys.modules and hasattr(ctypes.CDLL("libascendcl.so"), _EMULATOR_MARK)


def examine_installation(around: Surroundings) -> list[Finding]:
    """What fits and what does not among torch_npu, torch, CANN and the driver."""
    torch_npu, torch = around.packages.version("torch_npu"), around.packages.version("torch") or ""
    if torch_npu is None:
        do = f"pip install torch_npu=={torch.split('+')[0]}, which must match torch, and install CANN"
        return [Finding(PROBLEM, "torch_npu is not installed", do)]
    return [_pair(around, torch_npu, torch), *_python(torch_npu), *_cann(around, torch_npu), *_driver(around)]


def _pair(around: Surroundings, torch_npu: str, torch: str) -> Finding:
    """Whether torch_npu may be imported beside this torch."""
    ours, theirs = (".".join(map(str, release(version)[:3])) for version in (torch, torch_npu))
    do = f"pip install torch_npu=={ours} (or the {ours}.postN that fits your CANN; see docs/ascend.md)"
    if release(torch)[:2] != release(torch_npu)[:2]:
        what = (
            f"torch_npu {torch_npu} was built for torch {theirs}, but torch {torch} is installed: it cannot be loaded"
        )
        return Finding(PROBLEM, what, do)
    if around.packages.torch_is_cuda_build():
        what = f"torch {torch} is a CUDA build: torch_npu {torch_npu} refuses to load beside it (ERR00007)"
        return Finding(PROBLEM, what, f"install the CPU build of torch {ours}")
    if ours != theirs:
        return Finding(NOTE, f"torch_npu {torch_npu} was built for torch {theirs}, and torch {torch} is installed", do)
    return Finding(OK, f"torch_npu {torch_npu} is for torch {torch}")


def _python(torch_npu: str) -> list[Finding]:
    newest = next((last for line, last in ASCEND_PYTHON.items() if line == release(torch_npu)[:2]), None)
    if newest and sys.version_info[:2] > newest:
        text = ".".join(map(str, newest))
        return [Finding(NOTE, f"torch_npu {torch_npu} is published for Python up to {text}", f"use Python {text}")]
    return []


def wanted_cann(torch_npu: str) -> tuple[str | None, bool]:
    """(the CANN for a wheel of torch_npu, whether the published table says so): its row, or the last row before it of
    the same torch release. None where nothing is known.
    """
    version = torch_npu.split("+")[0]
    if version in ASCEND_UNLISTED_CANN:
        return ASCEND_UNLISTED_CANN[version], False
    rows = {row.torch_npu: row.cann for row in ASCEND if release(row.torch) == release(version)[:3]}
    if version in rows:
        return rows[version], True
    earlier = [name for name in rows if _post(name) <= _post(version)]
    return (rows[max(earlier, key=_post)], False) if earlier else (None, False)


def _post(version: str) -> int:
    found = re.search(r"\.post(\d+)", version)
    return int(found[1]) if found else 0


def find_cann(around: Surroundings) -> str | None:
    """The version of the CANN toolkit by its install records: of the sourced one, else at the usual places."""
    named = [around.environ.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
    usual = around.root / "usr/local/Ascend"
    for folder in (*filter(None, named), usual / "cann", usual / "ascend-toolkit/latest"):
        for pattern in ("*/ascend_*_install.info", "ascend_*_install.info", "*/*/ascend_*_install.info"):
            for record in sorted((around.root / folder).glob(pattern)):
                found = re.search(r"^version=(\S+)", record.read_text(errors="replace"), re.M)
                if found:
                    return found[1]
    return None


def _cann(around: Surroundings, torch_npu: str) -> list[Finding]:
    found, (wanted, published) = find_cann(around), wanted_cann(torch_npu)
    if not around.environ.get("ASCEND_HOME_PATH"):
        known = f"CANN {found} is installed, but its" if found else "CANN's"
        return [Finding(NOTE, f"{known} environment is not set up (ASCEND_HOME_PATH is not set)", _SET_ENV)]
    if found is None:
        return [Finding(NOTE, "CANN's version is not recorded where it was installed", "tell it in a bug report")]
    if wanted is None:
        return [Finding(NOTE, f"CANN {found}: no table says which CANN torch_npu {torch_npu} wants")]
    basis = "" if published else " by the nearest row of the published table, which has none for it"
    # As exactly as the table tells: 9.1 stands for every 9.1.x, and a release candidate for its release.
    same = len(release(wanted))
    if release(found)[:same] == release(wanted):
        return [Finding(OK, f"CANN {found} fits torch_npu {torch_npu}{basis}")]
    older = release(found)[:same] < release(wanted)
    what = f"CANN {found} is {'older' if older else 'newer'} than torch_npu {torch_npu} wants: {wanted}{basis}"
    risk = "undefined symbols at import or at the first operator" if older else "a pair that nobody published"
    return [
        Finding(NOTE, f"{what}; the risk: {risk}", f"install CANN {wanted}, or the torch_npu of CANN {found}'s row")
    ]


def find_driver(around: Surroundings) -> str | None:
    """The version of the NPU driver by its install record."""
    record = around.root / "usr/local/Ascend/driver/version.info"
    found = re.search(r"^Version=(\S+)", record.read_text(errors="replace"), re.M) if record.is_file() else None
    return found[1] if found else None


def _driver(around: Surroundings) -> list[Finding]:
    found = find_driver(around)
    if found:
        return [Finding(OK, f"NPU driver {found}")]
    what = "no record of an NPU driver; in a container it must be mounted from the host"
    return [Finding(NOTE, what, "check `npu-smi info`; start the container with -v /usr/local/Ascend/driver")]


VARIABLES = (
    Variable("ASCEND_HOME_PATH", "where CANN is installed", private=True),
    Variable("ASCEND_RT_VISIBLE_DEVICES", "the NPUs that this process sees"),
    Variable(
        "ASCEND_LAUNCH_BLOCKING",
        "whether each operator is waited for",
        (Concern("1", NOTE, "each operator is waited for: for finding faults, slow", "unset it to train"),),
    ),
    Variable(
        "TASK_QUEUE_ENABLE",
        "how operators are queued: 1 in the background (default), 2 with their workspace too",
        (Concern("0", NOTE, "operators are launched one by one by Python: slow", "unset it, or set it to 2"),),
    ),
    Variable(
        "PYTORCH_NPU_ALLOC_CONF",
        "how device memory is kept between uses",
        (
            Concern(
                "",
                NOTE,
                "memory comes in fixed segments, which long clips fragment",
                "export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
            ),
            Concern(
                ".*expandable_segments:True.*(max_split_size_mb|garbage_collection_threshold).*"
                "|.*(max_split_size_mb|garbage_collection_threshold).*expandable_segments:True.*",
                NOTE,
                "expandable segments exclude the other two settings",
                "keep expandable_segments:True alone",
            ),
        ),
    ),
    Variable(
        "INF_NAN_MODE_ENABLE",
        "whether overflow gives infinity",
        (Concern("0", PROBLEM, "overflow saturates, so a loss that diverges looks finite", "unset it"),),
    ),
    Variable(
        "INF_NAN_MODE_FORCE_DISABLE",
        "whether overflow saturates",
        (Concern("1", PROBLEM, "overflow saturates, so a loss that diverges looks finite", "unset it"),),
    ),
    Variable("CPU_AFFINITY_CONF", "binding of processes to cores; 1 helps where launching operators is the limit"),
    Variable("MULTI_STREAM_MEMORY_REUSE", "whether memory is reused across streams"),
    Variable("ACL_OP_COMPILER_CACHE_DIR", "where compiled operators are kept", private=True),
    Variable(
        "HCCL_CONNECT_TIMEOUT",
        "seconds that ranks wait for each other at the start",
        (
            Concern(
                r"\d|\d\d|1[01]\d",
                NOTE,
                "shorter than the default 120 s; loading 32 billion parameters keeps ranks apart for longer",
                "export HCCL_CONNECT_TIMEOUT=1200, the same on all ranks",
            ),
        ),
    ),
    Variable(
        "HCCL_EXEC_TIMEOUT",
        "seconds that a collective waits for a slow rank (default some 1800); a checkpoint must be written within",
        (
            Concern(
                r"\d{1,2}|[1-5]\d\d",
                NOTE,
                "shorter than ten minutes: a checkpoint written by one rank can outlast it",
                "export HCCL_EXEC_TIMEOUT=3600, the same on all ranks",
            ),
        ),
    ),
    Variable("HCCL_BUFFSIZE", "MB of device memory for each communicator (default 200); there are several"),
    Variable("HCCL_DETERMINISTIC", "whether reductions give the same bits in every run; slower"),
    Variable("HCCL_OP_EXPANSION_MODE", "which processor runs a collective's steps"),
    Variable("HCCL_ALGO", "which algorithms collectives use"),
    Variable(
        "HCCL_WHITELIST_DISABLE",
        "whether ranks are checked against a list of addresses; 1, the default: no",
        (Concern("0", NOTE, "only the addresses of HCCL_WHITELIST_FILE may join", "unset it, or list every host"),),
    ),
    Variable("HCCL_IF_IP", "the address by which hosts find each other", private=True),
    Variable("HCCL_SOCKET_IFNAME", "the network interface by which hosts find each other", private=True),
    Variable("RANK_TABLE_FILE", "the list of NPUs and addresses of all ranks", private=True),
    Variable(
        "TORCH_TRANSFER_TO_NPU",
        "whether torch_npu replaces parts of torch",
        (Concern("1", NOTE, "calls for another device are redirected; the engine needs none of that", "unset it"),),
    ),
)
