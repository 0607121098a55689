"""What kernels on rows of activations [b, s, d] ask of their inputs, whatever they are written in."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unit_rows(x: Tensor) -> Tensor:
    """x itself where its last axis is contiguous (rows may lie anywhere), else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def row_strides(x: Tensor) -> tuple[int, int]:
    """Strides of b and s of x [b, s, d]."""
    return x.stride(0), x.stride(1)


def per_sample(x: Tensor, vector: Tensor | None) -> Tensor | None:
    """A modulation vector as [b, d] for x [b, s, d]: one [1, d] that all samples share is expanded; None stays."""
    return vector if vector is None or vector.shape[:1] != (1,) else vector.expand(x.shape[0], -1)


def check_inputs(
    name: str, x: Tensor, *, like_x: dict | None = None, per_sample: dict | None = None, vectors: dict | None = None
) -> None:
    """Raise ValueError or TypeError unless x and `like_x` are [b, s, d], `per_sample` [b, d] and `vectors` [d].

    All must be of a dtype that the kernels take and on one device. None stands for an optional tensor left out.
    """
    if x.dim() != 3:
        raise ValueError(f"{name}: x must be [b, s, d], got {list(x.shape)}")
    b, s, d = x.shape
    expected = {"x": (x, (b, s, d))}
    for group, shape in ((like_x, (b, s, d)), (per_sample, (b, d)), (vectors, (d,))):
        expected |= {key: (tensor, shape) for key, tensor in (group or {}).items() if tensor is not None}
    for key, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: {key} must be {list(shape)} beside x {[b, s, d]}, got {list(tensor.shape)}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: {key} is {tensor.dtype}; the kernel takes {', '.join(map(str, DTYPES))}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: {key} is on {tensor.device}, x on {x.device}")


def check_tables(name: str, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raise ValueError unless cos and sin are [s, e/2] for x [b, s, h*e], on x's device."""
    s, d = x.shape[1:]
    if cos.dim() != 2 or cos.shape != sin.shape or cos.shape[0] != s or not cos.shape[1] or d % (2 * cos.shape[1]):
        tables = f"cos {list(cos.shape)} and sin {list(sin.shape)}"
        raise ValueError(f"{name}: cos and sin must be [s, e/2] with e a divisor of {d} and s {s}, got {tables}")
    if cos.device != x.device or sin.device != x.device:
        raise ValueError(f"{name}: cos is on {cos.device}, sin on {sin.device}, x on {x.device}")
