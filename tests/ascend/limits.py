"""What Ascend's documentation demands of the operators that we call, as a table, and a mode that holds calls to it.

Source: the documentation in torch_npu 2.13.0 (`torch_npu/_op_plugin_docs.py`), and CANN's of aclnnAttentionUpdate,
aclnnAdaLayerNorm, aclnnAddLayerNorm and aclnnRmsNormGrad. The package's own schemas and shape functions judge the rest
when calls are made on fake tensors. Of torch's own operators the mode holds to what users ran into: float64 and complex
numbers, which an NPU computes slowly or not at all, and convolutions of memory whose channels come last.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class LimitError(AssertionError):
    """A call that hardware would refuse, or that is not in the table."""


Violations = Iterator[str]


def _rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> Violations:
    if input.dtype not in FLOATS or gamma.dtype != input.dtype:
        yield f"dtypes {input.dtype} and {gamma.dtype}"
    if not 2 <= input.dim() <= 8 or gamma.shape != input.shape[-gamma.dim() :]:
        yield f"shapes {list(input.shape)} and {list(gamma.shape)}"


def _rms_norm_backward(dy: Tensor, input: Tensor, gamma: Tensor, rstd: Tensor) -> Violations:
    # Other than the forward it takes a weight in float32 beside half precision.
    yield from _rms_norm(input, gamma if gamma.dtype != torch.float32 else gamma.to(input.dtype))
    if dy.dtype != input.dtype or rstd.dtype != torch.float32:
        yield f"dy is {dy.dtype} for {input.dtype}, rstd {rstd.dtype}"


def _add_layer_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-5, additional_output: bool = False
) -> Violations:
    if x1.dtype not in FLOATS or x1.dtype != x2.dtype or not gamma.dtype == beta.dtype == torch.float32:
        yield f"dtypes {x1.dtype}, {x2.dtype}, {gamma.dtype} and {beta.dtype}"
    if not 1 <= x1.dim() <= 8 or x1.shape != x2.shape or gamma.shape != x1.shape[-1:] or beta.shape != gamma.shape:
        yield f"shapes {list(x1.shape)}, {list(x2.shape)}, {list(gamma.shape)} and {list(beta.shape)}"
    if not x1.numel():
        yield "an axis of no length"


def _rotary(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Violations:
    if input.dim() != 4:
        yield f"{input.dim()} axes instead of 4"
        return
    b, s, n, d = input.shape
    if input.dtype not in FLOATS or not input.dtype == r1.dtype == r2.dtype:
        yield f"dtypes {input.dtype}, {r1.dtype}, {r2.dtype}"
    if r1.shape != (1, s, 1, d) or r2.shape != r1.shape:
        yield f"tables {list(r1.shape)} for the layout [b, s, n, d] = {list(input.shape)}; only [1, s, 1, d] is allowed"
    if d % 2 or d >= 896:
        yield f"head dim {d}: must be even and below 896"
    if rotary_mode == "interleave" and b * n >= 1000:
        yield f"interleave with b * n = {b * n}: must be below 1000"
    if rotary_mode == "half" and max(b, n) >= 1000:
        yield f"half with b = {b}, n = {n}: must be below 1000"
    if rotary_mode not in ("half", "interleave") or rotate is not None:
        yield f"mode {rotary_mode}, rotate {rotate}"


def _rotary_backward(grad: Tensor, input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half") -> Violations:
    yield from _rotary(input, r1, r2, rotary_mode)
    # It has outputs for the tables' gradients, which need this.
    if input.shape[0] * input.shape[2] > 1024:
        yield f"b * n = {input.shape[0] * input.shape[2]}: must be at most 1024 where tables get gradients"


def _gelu(input: Tensor, *, approximate: str = "none") -> Violations:
    if input.dtype not in FLOATS:
        yield f"dtype {input.dtype}"
    if approximate != "tanh":
        yield f"approximate is '{approximate}'; MOVA's feed-forward is the tanh form"


def _gelu_backward(grad_output: Tensor, input: Tensor, *, approximate: str = "none") -> Violations:
    yield from _gelu(input, approximate=approximate)
    if grad_output.dtype != input.dtype:
        yield f"gradient {grad_output.dtype} for {input.dtype}"


def _attention(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str, *, scale: float = 1.0, **other: Any
) -> Violations:
    if query.dtype not in FLOATS or not query.dtype == key.dtype == value.dtype:
        yield f"dtypes {query.dtype}, {key.dtype}, {value.dtype}"
    if input_layout != "BSND" or query.dim() != 4 or key.dim() != 4:
        yield f"layout {input_layout} for {query.dim()} and {key.dim()} axes"
        return
    b, s, n, d = query.shape
    if key.shape != value.shape or key.shape[0] != b or key.shape[3] != d:
        yield f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
    if head_num != n or n % key.shape[2]:
        yield f"head_num {head_num} for {n} heads and {key.shape[2]} of keys"
    if not (1 <= n <= 256 and 1 <= d <= 768):
        yield f"{n} heads of {d} channels: at most 256 and 768"
    if not all(1 <= tokens <= 1 << 20 for tokens in (s, key.shape[1])):
        yield f"{s} queries, {key.shape[1]} keys: 1 to 1M"
    if not 1 <= b <= 2 << 20:
        yield f"batch {b}: 1 to 2M"
    if not math.isclose(scale, d**-0.5, rel_tol=1e-6):
        yield f"scale {scale} for head dim {d}"
    if other:
        yield f"arguments that MOVA does not need: {', '.join(other)}"


def _attention_grad(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, head_num: int, input_layout: str, *,
    softmax_max: Tensor, softmax_sum: Tensor, attention_in: Tensor, scale_value: float = 1.0,
    softmax_in: Tensor | None = None, **other: Any,
) -> Violations:  # fmt: skip
    yield from _attention(query, key, value, head_num, input_layout, scale=scale_value, **other)
    b, s, n, _ = query.shape
    if any(x.shape != query.shape or x.dtype != query.dtype for x in (dy, attention_in)):
        yield f"dy {list(dy.shape)} {dy.dtype}, output {list(attention_in.shape)} {attention_in.dtype}"
    if any(x.shape != (b, n, s, 8) or x.dtype != torch.float32 for x in (softmax_max, softmax_sum)):
        yield f"statistics {list(softmax_max.shape)}, {list(softmax_sum.shape)}: [b, n, s, 8] in float32"


def _attention_update(lse: list[Tensor], local_out: list[Tensor], update_type: int) -> Violations:
    if not 1 <= len(lse) == len(local_out) <= 16:
        yield f"{len(lse)} and {len(local_out)} shards: 1 to 16"
    for statistic, out in zip(lse, local_out, strict=False):
        rows, d = out.shape
        if statistic.dtype != torch.float32 or out.dtype != torch.float32:
            yield f"dtypes {statistic.dtype} and {out.dtype}"
        if statistic.shape != (rows,) or d % 8 or not 8 <= d <= 512:
            yield f"shapes {list(statistic.shape)} and {list(out.shape)}: head dims are multiples of 8 up to 512"
        if not (statistic.is_contiguous() and out.is_contiguous()):
            yield "not contiguous"


def _dynamic_quant(input: Tensor) -> Violations:
    if input.dtype not in FLOATS[1:] or input.dim() < 2:
        yield f"{input.dim()} axes of {input.dtype}"
    if input.shape[-1] > 11264:
        yield f"rows of {input.shape[-1]}: at most 11264"


def _quant_matmul(
    x1: Tensor, x2: Tensor, scale: Tensor, *, pertoken_scale: Tensor, output_dtype: int, bias: Tensor | None = None
) -> Violations:
    if not x1.dtype == x2.dtype == torch.int8 or not scale.dtype == pertoken_scale.dtype == torch.float32:
        yield f"dtypes {x1.dtype}, {x2.dtype}, {scale.dtype}, {pertoken_scale.dtype}"
    if scale.shape != x2.shape[1:] or pertoken_scale.shape != x1.shape[:1] or 0 in (*x1.shape, *x2.shape):
        yield f"shapes {list(x1.shape)}, {list(x2.shape)}, {list(scale.shape)}, {list(pertoken_scale.shape)}"
    if x1.shape[-1] > 65535 or x2.shape[-1] > 65535:
        yield f"last axes of {x1.shape[-1]} and {x2.shape[-1]}: at most 65535"
    dtype = {5: torch.float16, 15: torch.bfloat16}.get(output_dtype)  # torch's numbers
    if dtype is None or (bias is not None and bias.dtype != dtype):
        yield f"{output_dtype} with a bias of {None if bias is None else bias.dtype}"


def _ada_layer_norm(x: Tensor, scale: Tensor, shift: Tensor, epsilon: float = 1e-5) -> Violations:
    b, _, d = x.shape
    if x.dtype not in FLOATS or not x.dtype == scale.dtype == shift.dtype:
        yield f"dtypes {x.dtype}, {scale.dtype}, {shift.dtype}"
    if scale.shape != (b, d) or shift.shape != (b, d):
        yield f"shapes {list(x.shape)}, {list(scale.shape)}, {list(shift.shape)}"


LIMITS: dict[str, Callable[..., Violations]] = {
    "npu::npu_add_layer_norm": _add_layer_norm,
    "npu::npu_rms_norm": _rms_norm,
    "npu::npu_rms_norm_backward": _rms_norm_backward,
    "npu::npu_rotary_mul": _rotary,
    "npu::npu_rotary_mul_backward": _rotary_backward,
    "npu::npu_gelu": _gelu,
    "npu::npu_gelu_backward": _gelu_backward,
    "npu::npu_fusion_attention": _attention,
    "npu::npu_fusion_attention_grad": _attention_grad,
    "npu::npu_attention_update": _attention_update,
    "npu::npu_dynamic_quant": _dynamic_quant,
    "npu::npu_quant_matmul": _quant_matmul,
    "mindiesd::adaln": _ada_layer_norm,
}


# Which the device refuses, or leaves to its helper CPU.
_FOREIGN = (torch.float64, torch.complex64, torch.complex128)
_CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")


def _torch_call(name: str, args: tuple, results: Any) -> Violations:
    """What users' models ran into with torch's own operators on this device."""
    for x in (*tree_leaves(args), *tree_leaves(results)):
        if isinstance(x, Tensor) and x.device.type == "npu" and x.dtype in _FOREIGN:
            yield f"a tensor {list(x.shape)} of {x.dtype}"
    if name in _CONVOLUTIONS and not all(x.is_contiguous() for x in args[: 2 + name.endswith("backward")]):
        yield f"memory is not contiguous: {[x.stride() for x in args[:2]]} for {[list(x.shape) for x in args[:2]]}"


def _given(operator, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Arguments by the schema's names, without those that have their default value."""
    schema = {a.name: a for a in operator._schema.arguments}
    named = dict(zip(schema, args, strict=False)) | kwargs
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, Tensor) or not schema[name].has_default_value() or value != schema[name].default_value
    }


class Limits(TorchDispatchMode):
    """Within the block every `npu::` and `mindiesd::` call is looked up and checked, and torch's own for what is known
    of them; `calls` counts the former by name, `convolutions` those.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.convolutions = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name, kwargs = operator._schema.name, kwargs or {}
        if name.startswith(("npu::", "mindiesd::")):
            self.calls[name] = self.calls.get(name, 0) + 1
            check = LIMITS.get(name)
            if check is None:
                raise LimitError(f"{name} is not in the table of operators whose limits are known")
            found = list(check(**_given(operator, args, kwargs)))
            if found:
                raise LimitError(f"{name}: {'; '.join(found)}")
            return operator(*args, **kwargs)
        if name == "aten::_pin_memory":
            return args[0]  # of tensors without data torch pins none for a plug-in's device
        results = operator(*args, **kwargs)
        self.convolutions += name in _CONVOLUTIONS
        found = list(_torch_call(name, (*args, *kwargs.values()), results))
        if found:
            raise LimitError(f"{name}: {'; '.join(found)}")
        return results
