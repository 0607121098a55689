"""Vendors' operators by their schemas and shapes alone, for tensors without data where the package is not installed.

`torch.ops.npu.*` and `torch.ops.mindiesd.*` as `mova_kernels.npu` calls them. Each returns uninitialised tensors of the
shapes and dtypes that the device's would have; where it has a gradient, that keeps what torch_npu's keeps.
"""

import functools
import importlib.util

import torch
from torch import Tensor

_MINDIE = "adaln(Tensor x, Tensor scale, Tensor shift, Tensor? weight, Tensor? bias, float epsilon) -> Tensor"
_SCHEMAS = (
    "npu_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)",
    "npu_rms_norm_backward(Tensor dy, Tensor self, Tensor gamma, Tensor rstd) -> (Tensor, Tensor)",
    "npu_add_layer_norm(Tensor x1, Tensor x2, Tensor gamma, Tensor beta, float epsilon=1e-05,"
    " bool additional_output=False) -> (Tensor, Tensor, Tensor, Tensor)",
    "npu_rotary_mul(Tensor self, Tensor r1, Tensor r2, str rotary_mode='half', Tensor? rotate=None) -> Tensor",
    "npu_gelu(Tensor self, *, str approximate='none') -> Tensor",
    "npu_gelu_backward(Tensor grad_output, Tensor self, *, str approximate='none') -> Tensor",
    "npu_dynamic_quant(Tensor input) -> (Tensor, Tensor)",
    "npu_quant_matmul(Tensor x1, Tensor x2, Tensor scale, *, Tensor? pertoken_scale=None, Tensor? bias=None,"
    " ScalarType? output_dtype=None) -> Tensor",
    "npu_attention_update(Tensor[] lse, Tensor[] local_out, int update_type) -> (Tensor, Tensor)",
)


def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    rows = x.shape[: x.dim() - gamma.dim()] + (1,) * gamma.dim()
    return torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)


def _rms_norm_backward(dy: Tensor, x: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), gamma.new_empty(gamma.shape, dtype=torch.float32)


def _add_layer_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-5, additional_output: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x1.shape[: x1.dim() - gamma.dim()] + (1,) * gamma.dim()
    mean, rstd = (x1.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x1), mean, rstd, torch.empty_like(x1)


def _rotary_mul(x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    return torch.empty_like(x)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return torch.empty_like(x)


def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    return torch.empty_like(x)


def _attention_update(lse: list[Tensor], local_out: list[Tensor], update_type: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(local_out[0]), torch.empty_like(lse[0])


def _dynamic_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    return x1.new_empty((x1.shape[0], x2.shape[1]), dtype=output_dtype)


_FAKES = {
    "npu_dynamic_quant": _dynamic_quant,
    "npu_quant_matmul": _quant_matmul,
    "npu_rms_norm": _rms_norm,
    "npu_rms_norm_backward": _rms_norm_backward,
    "npu_add_layer_norm": _add_layer_norm,
    "npu_rotary_mul": _rotary_mul,
    "npu_gelu": _gelu,
    "npu_gelu_backward": _gelu_backward,
    "npu_attention_update": _attention_update,
}


def _save_rms_norm(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])


def _rms_norm_gradients(ctx, dy, _):
    x, gamma, rstd = ctx.saved_tensors  # asked for once: what checkpointing recomputes is handed out once
    dx, dgamma = torch.ops.npu.npu_rms_norm_backward(dy, x, gamma, rstd)
    return dx, dgamma.to(gamma.dtype), None


def _save_gelu(ctx, inputs, keyword_only_inputs, output) -> None:
    ctx.save_for_backward(inputs[0])


def _gelu_gradient(ctx, grad):
    return torch.ops.npu.npu_gelu_backward(grad, *ctx.saved_tensors)


def _modulated(x: Tensor, scale: Tensor, shift: Tensor, weight, bias, epsilon: float) -> Tensor:
    return torch.empty_like(x)


@functools.cache
def define() -> None:
    """Define the operators, once; not those of a package that is installed."""
    if importlib.util.find_spec("torch_npu") is None:
        _LIBRARIES.append(_npu())
    if importlib.util.find_spec("mindiesd") is None:
        library = torch.library.Library("mindiesd", "FRAGMENT")
        library.define(_MINDIE)
        torch.library.register_fake("mindiesd::adaln", _modulated, lib=library)
        _LIBRARIES.append(library)


# An operator ends with its library.
_LIBRARIES: list[torch.library.Library] = []


def _npu() -> torch.library.Library:
    library = torch.library.Library("npu", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"npu::{name}", fake, lib=library)
    gradients = {"npu_rms_norm": (_rms_norm_gradients, _save_rms_norm), "npu_gelu": (_gelu_gradient, _save_gelu)}
    for name, (backward, save) in gradients.items():
        torch.library.register_autograd(f"npu::{name}", backward, setup_context=save, lib=library)
    return library
