"""Huawei Ascend NPUs, through torch_npu.

Verified by emulation, contract and compilation: `make test-npu` runs torch_npu itself on an emulated CANN, and checks
every call of its operators against their documented limits. No run on hardware has been recorded.
"""

# torch has the attribute `npu` once torch_npu is imported.
# pyright: reportAttributeAccessIssue=false

import importlib
import importlib.util
import os
from types import MappingProxyType

import torch

from mova_engine.backend import health_npu
from mova_engine.backend.base import Backend
from mova_engine.backend.health import Finding, Surroundings

# Dense bf16 peak of Atlas A2 parts as the published MOVA runs count it.
_PEAKS = {"Ascend910B": {torch.bfloat16: 376e12, torch.float16: 376e12}}


class NpuBackend(Backend):
    name = "npu"
    collectives = "hccl"
    ray_takes = MappingProxyType({"resources": {"NPU": 1}})
    # HCCL_EXEC_TIMEOUT says how long a collective waits, in groups of some ranks too.
    changes_timeouts = False
    # See `finish_backward`.
    sums_in_backward = False
    vendor_package = "torch_npu"
    # torch_npu turns float64 into float32 with a warning.
    float64 = False
    channels_last = False
    variables = health_npu.VARIABLES

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("torch_npu") is None:
            version = torch.__version__.split("+")[0]
            return (
                f"the package torch_npu is not installed; install torch_npu=={version} (it must match torch) and CANN, "
                "or use --device cpu"
            )
        try:
            self.prepare()
        except Exception as error:  # torch_npu raises plain Exceptions where CANN is missing
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            return (
                f"torch_npu does not import ({first_line}); match its version to torch {torch.__version__} "
                "and source CANN's set_env.sh"
            )
        if not torch.npu.is_available():
            return "torch_npu sees no NPU; check `npu-smi info` and ASCEND_RT_VISIBLE_DEVICES, or use --device cpu"
        return None

    def present(self, around: Surroundings) -> bool:
        if around.environ.get("ASCEND_RT_VISIBLE_DEVICES") == "":
            return False
        packages = around.packages
        installed = packages.version("torch_npu") is not None or packages.has_module("torch_npu")
        return installed or any((around.root / "dev").glob("davinci[0-9]*"))

    def prepare(self) -> None:
        # Registers the device with torch; nothing of torch is patched (torch_npu's transfer_to_npu is never used).
        importlib.import_module("torch_npu")
        # Ready-made kernels, the default on this family. Compiled on the spot, npu_rotary_mul could not interleave.
        torch.npu.set_compile_mode(jit_compile=False)

    def describe(self) -> str:
        return torch.npu.get_device_name()

    def emulated(self) -> bool:
        return health_npu.emulated()

    def examine_installation(self, around: Surroundings) -> list[Finding]:
        return health_npu.examine_installation(around)

    def versions(self) -> dict[str, str]:
        return {"CANN": importlib.import_module("torch_npu.npu.utils").get_cann_version()}

    def free_memory(self) -> tuple[int, int]:
        return torch.npu.mem_get_info()

    def peak_flops(self, dtype: torch.dtype) -> float | None:
        name = self.describe()
        return next((peaks.get(dtype) for family, peaks in _PEAKS.items() if family in name), None)

    def memory_allocated(self) -> int:
        return torch.npu.memory_allocated()

    def peak_memory(self) -> int:
        return torch.npu.max_memory_allocated()

    def reset_peak_memory(self) -> None:
        torch.npu.reset_peak_memory_stats()

    def host_memory(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def synchronize(self) -> None:
        torch.npu.synchronize()

    def finish_backward(self) -> None:
        # Users' runs with replicated data parallelism became NaN: HCCL's stream read gradients that the backward was
        # still writing on another. The device is waited for, as it is soon after to learn whether the loss is finite.
        torch.npu.synchronize()

    def rng_state(self) -> torch.Tensor:
        return torch.npu.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.npu.set_rng_state(state)

    def require_determinism(self) -> None:
        super().require_determinism()
        # Of HCCL's sums, which reads it when a group is opened.
        os.environ["HCCL_DETERMINISTIC"] = "true"

    def _precision_switches(self) -> list[tuple[str, object, str, object]]:
        return [
            ("HF32 in matrix products", torch.npu.matmul, "allow_hf32", False),
            ("HF32 in convolutions", torch.npu.conv, "allow_hf32", False),
        ]


BACKEND = NpuBackend()
