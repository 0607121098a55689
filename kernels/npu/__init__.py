"""Operators on Ascend NPUs by torch_npu's fused kernels, forward and backward.

torch_npu registers its `npu::` operators with PyTorch when it is imported, which whoever asks for the device has done.
Their limits are those of the documentation that comes in its package; tests/ascend asserts them at MOVA's shapes. Only
operators that are differentiable, or are used inside an autograd function of ours, appear here: several others of
torch_npu leave a gradient None without a word.

torch_npu's autocast knows the aten operators only. The rules here: attention computes in the dtype that autocast asks
for, as it would by PyTorch's own lists; norms, rotations and gates keep the dtype of x and compute in float32 inside.
"""

import torch

_USED = (
    "npu_add_layer_norm",
    "npu_attention_update",
    "npu_dynamic_quant",
    "npu_fusion_attention",
    "npu_fusion_attention_grad",
    "npu_gelu",
    "npu_quant_matmul",
    "npu_rms_norm",
    "npu_rms_norm_backward",
    "npu_rotary_mul",
)


def unavailable() -> str | None:
    """Which operators the imported torch_npu lacks, with the remedy; None when it has all."""
    missing = [name for name in _USED if not hasattr(torch.ops.npu, name)]
    return f"this torch_npu has no {', '.join(missing)}; install the version that matches torch" if missing else None
