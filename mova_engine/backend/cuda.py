"""NVIDIA GPUs."""

import os
import weakref
from types import MappingProxyType
from typing import Any

import torch

from mova_engine.backend import health_cuda
from mova_engine.backend.base import Backend
from mova_engine.backend.health import Finding, Surroundings
from mova_engine.errors import MovaError

# Dense matrix-product peaks in FLOP/s from NVIDIA's data sheets (SXM parts where both exist), without sparsity.
_PEAKS = {
    "H200": {torch.bfloat16: 989.4e12, torch.float16: 989.4e12, torch.float32: 67e12},
    "H100": {torch.bfloat16: 989.4e12, torch.float16: 989.4e12, torch.float32: 67e12},
    "A100": {torch.bfloat16: 312e12, torch.float16: 312e12, torch.float32: 19.5e12},
    "RTX 4090": {torch.bfloat16: 165.2e12, torch.float16: 165.2e12, torch.float32: 82.6e12},
}

# Of cuBLAS with which it is deterministic, by NVIDIA's manual.
_WORKSPACES = (":4096:8", ":16:8")


class CudaBackend(Backend):
    name = "cuda"
    collectives = "nccl"
    obeys_found_inf = True
    ray_takes = MappingProxyType({"num_gpus": 1})
    variables = health_cuda.VARIABLES

    def unavailable(self) -> str | None:
        if not torch.backends.cuda.is_built():
            return (
                f"torch {torch.__version__} was built without CUDA; install a CUDA build of torch, or use --device cpu"
            )
        if not torch.cuda.is_available():
            return "torch sees no NVIDIA GPU; check `nvidia-smi` and the driver, or use --device cpu"
        return None

    def present(self, around: Surroundings) -> bool:
        # A CUDA build of torch alone says nothing: it is what PyPI gives to machines without a GPU too.
        if around.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            return False
        files = "proc/driver/nvidia/version", "dev/nvidia0", "dev/nvidiactl"
        return any((around.root / file).exists() for file in files)

    def describe(self) -> str:
        return torch.cuda.get_device_name()

    def examine_installation(self, around: Surroundings) -> list[Finding]:
        return health_cuda.examine_installation(around)

    def versions(self) -> dict[str, str]:
        found = {"CUDA runtime": torch.version.cuda, "cuDNN": str(torch.backends.cudnn.version())}
        if torch.distributed.is_nccl_available():
            found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # pyright: ignore[reportAttributeAccessIssue] imported on demand
        return found | {"compute capability": ".".join(map(str, torch.cuda.get_device_capability()))}

    def free_memory(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info()

    def peak_flops(self, dtype: torch.dtype) -> float | None:
        name = self.describe()
        # PCIe and NVL parts of a family run at other clocks, so that their peak is not the one in the table.
        if "PCIe" in name or "NVL" in name:
            return None
        return next((peaks.get(dtype) for family, peaks in _PEAKS.items() if family in name), None)

    def compute_capability(self) -> tuple[int, int] | None:
        return torch.cuda.get_device_capability()

    def memory_allocated(self) -> int:
        return torch.cuda.memory_allocated()

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reset_peak_memory(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def host_memory(self, size: int) -> torch.Tensor:
        # Registered, not torch's own pinned memory, which comes in powers of two: up to twice as much.
        memory = torch.empty(size, dtype=torch.uint8)
        runtime: Any = torch.cuda.cudart()
        address = memory.data_ptr()
        code = int(runtime.cudaHostRegister(address, size, 0)) if size else 0
        if code:
            raise MovaError(
                f"{size / 1e9:.1f} GB of host memory cannot be pinned (CUDA error {code}): raise the limit of locked "
                "memory (ulimit -l), or let the weights wait in files"
            )
        weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, address)
        return memory

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def rng_state(self) -> torch.Tensor:
        return torch.cuda.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.cuda.set_rng_state(state)

    def require_determinism(self) -> None:
        super().require_determinism()
        # cuBLAS reads it when it is first used; with others than these it may choose by what else runs.
        config = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACES[0])
        if config not in _WORKSPACES:
            raise MovaError(
                f"--deterministic: CUBLAS_WORKSPACE_CONFIG is {config}, and cuBLAS is deterministic with "
                f"{' or '.join(_WORKSPACES)} alone: unset it"
            )
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

    def _precision_switches(self) -> list[tuple[str, object, str, object]]:
        matmul, conv = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)
        # torch 2.9 replaced the allow_tf32 flags by fp32_precision, and refuses a mixture of the two.
        if hasattr(matmul, "fp32_precision") and hasattr(conv, "fp32_precision"):
            return [
                ("TF32 in matrix products (cuBLAS)", matmul, "fp32_precision", "ieee"),
                ("TF32 in convolutions (cuDNN)", conv, "fp32_precision", "ieee"),
            ]
        return [
            ("TF32 in matrix products (cuBLAS)", matmul, "allow_tf32", False),
            ("TF32 in convolutions (cuDNN)", torch.backends.cudnn, "allow_tf32", False),
        ]


BACKEND = CudaBackend()
