"""Findings on NVIDIA GPUs: the build of torch, the driver, the environment."""

import re
import shutil
import subprocess

import torch

from mova_engine.backend.compatibility import NVIDIA_DRIVER
from mova_engine.backend.health import NOTE, OK, PROBLEM, Concern, Finding, Surroundings, Variable, release


def find_driver(around: Surroundings) -> str | None:
    """The version of the driver, from the kernel module or nvidia-smi."""
    module = around.root / "proc/driver/nvidia/version"
    if module.is_file():
        found = re.search(r"Kernel Module.*?\s(\d+\.\d+(\.\d+)?)\s", module.read_text(errors="replace"))
        if found:
            return found[1]
    tool = shutil.which("nvidia-smi", path=around.environ.get("PATH"))
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    child = subprocess.run(query, capture_output=True, text=True, timeout=20)
    return child.stdout.splitlines()[0].strip() if child.returncode == 0 and child.stdout.strip() else None


def examine_installation(around: Surroundings) -> list[Finding]:
    """Whether torch is a build for GPUs and the driver is new enough for it."""
    version = around.packages.version("torch")
    if not around.packages.torch_is_cuda_build():
        what = f"torch {version} is a build without CUDA"
        return [Finding(PROBLEM, what, "install a CUDA build of the same release, or use --device cpu")]
    driver = find_driver(around)
    if driver is None:
        return [
            Finding(NOTE, "no NVIDIA driver is to be seen", "check `nvidia-smi`; in a container, start it with GPUs")
        ]
    runtime = torch.version.cuda
    least = NVIDIA_DRIVER.get(release(runtime)[0] if runtime else 0)
    if least and release(driver)[0] < least:
        what = f"driver {driver} is too old for CUDA {runtime}, which torch {version} was built with: {least} or newer"
        return [
            Finding(PROBLEM, what, f"update the driver to {least} or newer, or install an older CUDA build of torch")
        ]
    return [Finding(OK, f"driver {driver} serves CUDA {runtime}, which torch {version} was built with")]


VARIABLES = (
    Variable("CUDA_VISIBLE_DEVICES", "the GPUs that this process sees"),
    Variable(
        "CUDA_LAUNCH_BLOCKING",
        "whether each kernel is waited for",
        (Concern("1", NOTE, "each kernel is waited for: for finding faults, slow", "unset it to train"),),
    ),
    Variable("CUDA_DEVICE_MAX_CONNECTIONS", "how many queues of work the GPU is fed by"),
    Variable("CUBLAS_WORKSPACE_CONFIG", "work space of matrix products; :4096:8 makes them reproducible"),
    Variable(
        "NVIDIA_TF32_OVERRIDE",
        "TF32 in NVIDIA's libraries; 0 forbids it",
        (Concern("1", NOTE, "float32 products use TF32 whatever the engine asks for", "unset it"),),
    ),
    Variable("PYTORCH_CUDA_ALLOC_CONF", "how device memory is kept between uses"),
    Variable("PYTORCH_ALLOC_CONF", "how device memory is kept between uses"),
    Variable("NCCL_DEBUG", "how much NCCL tells"),
    Variable(
        "NCCL_P2P_DISABLE",
        "whether GPUs of a host exchange data directly",
        (Concern("1", NOTE, "GPUs exchange data through host memory: slow", "unset it where NVLink works"),),
    ),
    Variable(
        "NCCL_IB_DISABLE",
        "whether InfiniBand is used between hosts",
        (Concern("1", NOTE, "hosts talk by plain sockets: slow", "unset it where InfiniBand works"),),
    ),
    Variable("NCCL_SOCKET_IFNAME", "the network interface by which hosts find each other", private=True),
    Variable("TORCH_NCCL_ASYNC_ERROR_HANDLING", "whether a rank ends when another fails; 0 lets it hang"),
    Variable("TORCH_NCCL_BLOCKING_WAIT", "whether collectives are waited for"),
)
