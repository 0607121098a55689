"""What adapters to PyTorch's and vendors' functions check first: their own errors name neither operator nor remedy."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mova_engine.errors import MovaError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
_REMEDY = "the reference implementation takes any floating dtype"


def _first(tensors: Mapping[str, Tensor | None]) -> tuple[str, Tensor]:
    """The first that is given, with its name."""
    return next((name, x) for name, x in tensors.items() if x is not None)


def same_device(operator: str, **tensors: Tensor | None) -> None:
    """All on the device of the first."""
    first, x = _first(tensors)
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise MovaError(f"{operator}: {name} is on {tensor.device}, {first} on {x.device}; move them to one device")


def same_dtype(operator: str, known: Iterable[torch.dtype], **tensors: Tensor | None) -> None:
    """All of the first one's dtype, and that one of `known`."""
    first, x = _first(tensors)
    if x.dtype not in known:
        takes = ", ".join(str(dtype).removeprefix("torch.") for dtype in known)
        raise MovaError(f"{operator}: {first} is {x.dtype}; this implementation takes {takes}, {_REMEDY}")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != x.dtype:
            raise MovaError(f"{operator}: {name} is {tensor.dtype}, {first} {x.dtype}; convert them to one dtype")


def attention(operator: str, q: Tensor, k: Tensor, v: Tensor, known: Iterable[torch.dtype] = FLOATS) -> None:
    """q [b, s, h, e], k and v [b, n, h, e] with e > 0, of one known dtype, on one device."""
    fits = q.dim() == k.dim() == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]
    if not fits or q.shape[-1] == 0:
        shapes = f"{list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        raise MovaError(f"{operator}: q must be [b, s, h, e], k and v [b, n, h, e] with e > 0, got {shapes}")
    same_device(operator, q=q, k=k, v=v)
    same_dtype(operator, known, q=q, k=k, v=v)


def attention_gradient(
    operator: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    known: Iterable[torch.dtype] = FLOATS,
) -> None:
    """The inputs of `attention_backward`: dout and out like q, lse [b, h, s] float32."""
    attention(operator, q, k, v, known)
    same_device(operator, q=q, dout=dout, out=out, lse=lse)
    same_dtype(operator, known, q=q, dout=dout, out=out)
    b, s, h, _ = q.shape
    if dout.shape != q.shape or out.shape != q.shape or lse.shape != (b, h, s) or lse.dtype != torch.float32:
        found = f"{list(dout.shape)}, {list(out.shape)} and {list(lse.shape)} {lse.dtype}"
        raise MovaError(f"{operator}: dout and out must be {list(q.shape)}, lse {[b, h, s]} float32, got {found}")


def linear(operator: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """x [.., i], weight [o, i], bias [o] or None, on one device; their dtypes are not looked at."""
    if weight.dim() != 2 or x.dim() < 2 or weight.shape[1] != x.shape[-1]:
        shapes = f"{list(x.shape)} and {list(weight.shape)}"
        raise MovaError(f"{operator}: x must be [b, s, i] and weight [o, i], got {shapes}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise MovaError(f"{operator}: bias must be {list(weight.shape[:1])}, got {list(bias.shape)}")
    same_device(operator, x=x, weight=weight, bias=bias)


def adapter(operator: str, x: Tensor, shape: Sequence[int], lora_a: Tensor, lora_b: Tensor) -> None:
    """lora_a [r, i] and lora_b [o, r] of x's dtype beside a weight of shape [o, i]."""
    o, i = shape
    if lora_a.dim() != 2 or lora_b.dim() != 2 or lora_a.shape[1] != i or lora_b.shape != (o, lora_a.shape[0]):
        shapes = f"{list(lora_a.shape)} and {list(lora_b.shape)}"
        raise MovaError(f"{operator}: lora_a must be [r, {i}] and lora_b [{o}, r], got {shapes}")
    same_device(operator, x=x, lora_a=lora_a, lora_b=lora_b)
    same_dtype(operator, FLOATS, x=x, lora_a=lora_a, lora_b=lora_b)


def norm(operator: str, x: Tensor, **vectors: Tensor) -> None:
    """x [b, s, d] with d > 0 of a known dtype, and floating vectors [d]."""
    if x.dim() != 3 or x.shape[-1] == 0:
        raise MovaError(f"{operator}: x must be [b, s, d] with d > 0, got {list(x.shape)}")
    same_device(operator, x=x, **vectors)
    same_dtype(operator, FLOATS, x=x)
    for name, vector in vectors.items():
        if vector.shape != x.shape[-1:] or not vector.is_floating_point():
            found = f"{list(vector.shape)} {vector.dtype}"
            raise MovaError(f"{operator}: {name} must be [{x.shape[-1]}] of a floating dtype, got {found}")
