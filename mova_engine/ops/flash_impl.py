"""The flash-attn packages (Dao et al., 2022; Dao, 2023; Shah et al., 2024): versions 2, 3 and 4 as adapters.

All take [b, s, h, e] as the engine has it, in float16 and bfloat16, and give the log-sum-exp as [b, h, s] float32. The
entry of each backward is private to its package and is probed for by name when operators are bound.
"""

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops import requirements
from mova_engine.ops.attention_impl import adjacent, no_gradients, no_keys

FLASH2, FLASH3, FLASH4 = "flash_attn.flash_attn_interface", "flash_attn_interface", "flash_attn.cute.interface"


def _function(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _deterministic(name: str, function: Any) -> dict[str, bool]:
    """The argument that has `function`'s backward add in a fixed order, where torch was told to be deterministic."""
    if not torch.are_deterministic_algorithms_enabled() or torch.is_deterministic_algorithms_warn_only_enabled():
        return {}
    parameters = inspect.signature(function).parameters
    if "deterministic" not in parameters and not any(x.kind is x.VAR_KEYWORD for x in parameters.values()):
        raise MovaError(
            f"the installed {name} has no deterministic backward: name another attention, such as --ops.attention "
            "sdpa-flash-cuda --ops.attention_lse flash-cuda --ops.attention_backward flash-cuda"
        )
    return {"deterministic": True}


def _check(operator: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    requirements.attention(operator, q, k, v, requirements.HALVES)
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        raise MovaError(
            f"{operator}: flash-attn takes head dims that are multiples of 8 up to 256, got {q.shape[-1]}; "
            "the implementation 'sdpa' takes any"
        )


def _attention(module: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    _check("attention", q, k, v)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_keys(q)[0]
    function = _function(module, "flash_attn_func")
    out = function(*adjacent(q, k, v), **_deterministic(module, function))
    # Version 4, and early builds of 3, hand out the log-sum-exp too.
    return out[0] if isinstance(out, tuple) else out


def _lse(module: str, asking: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    _check("attention_lse", q, k, v)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_keys(q)
    with torch.no_grad():
        out, lse, *_ = _function(module, "flash_attn_func")(*adjacent(q, k, v), **{asking: True})
    return out, lse


def flash2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` by flash-attn 2."""
    return _attention(FLASH2, q, k, v)


def flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` by flash-attn 3, for Hopper."""
    return _attention(FLASH3, q, k, v)


def flash4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` by flash-attn 4, for Hopper and later."""
    return _attention(FLASH4, q, k, v)


def flash2_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_lse` by flash-attn 2."""
    return _lse(FLASH2, "return_attn_probs", q, k, v)


def flash3_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_lse` by flash-attn 3."""
    return _lse(FLASH3, "return_attn_probs", q, k, v)


def flash4_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_lse` by flash-attn 4."""
    return _lse(FLASH4, "return_lse", q, k, v)


def _backward_inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
    requirements.attention_gradient("attention_backward", *tensors, known=requirements.HALVES)
    dout, q, k, v, out, lse = tensors
    _check("attention_backward", q, k, v)
    return (*adjacent(dout, q, k, v, out), lse.contiguous())


def flash2_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward` by flash-attn 2."""
    dout, q, k, v, out, lse = _backward_inputs(dout, q, k, v, out, lse)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_gradients(q, k, v)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    backward = _function(FLASH2, "_flash_attn_backward")
    backward(
        dout, q, k, v, out, lse, dq, dk, dv, dropout_p=0.0, softmax_scale=q.shape[-1] ** -0.5, causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
        **{"deterministic": False, **_deterministic(FLASH2, backward)},
    )  # fmt: skip
    return dq, dk, dv


def flash3_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward` by flash-attn 3."""
    dout, q, k, v, out, lse = _backward_inputs(dout, q, k, v, out, lse)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_gradients(q, k, v)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    backward = _function(FLASH3, "_flash_attn_backward")
    asked = _deterministic(FLASH3, backward)
    backward(dout, q, k, v, out, lse, dq=dq, dk=dk, dv=dv, softmax_scale=q.shape[-1] ** -0.5, **asked)
    return dq, dk, dv


def flash4_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward` by flash-attn 4."""
    dout, q, k, v, out, lse = _backward_inputs(dout, q, k, v, out, lse)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_gradients(q, k, v)
    backward = _function(FLASH4, "_flash_attn_bwd")
    asked = _deterministic(FLASH4, backward)
    # Here dout stands behind out.
    dq, dk, dv, *_ = backward(q, k, v, out, dout, lse, softmax_scale=q.shape[-1] ** -0.5, **asked)
    return dq, dk, dv
