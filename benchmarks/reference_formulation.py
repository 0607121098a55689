"""The baseline: the engine's operators in the formulation of MOVA's published model, one torch operation after another.

The same model and the same matrix products; only what lies between them differs. Written from the description of the
model's numerics, and kept free of both tricks and padding:

* rotary embedding of the towers as a product of complex numbers in float64;
* RMSNorm over a float32 copy, rounded, then a separate product with the weight;
* LayerNorm, `* (1 + scale)`, `+ shift`, `gate *` and the residual's `+` as separate operations in the activations' own
  dtype, to which the modulations are cast;
* the bridge's rotary embedding as `x cos + rotate_half(x) sin` with tables cast to the activations' dtype;
* a low-rank adapter as a branch beside its layer, `W x + b + s B(A x)`, and GELU after its linear layer.

What autograd keeps for the backward is what these operations keep. Signatures, shapes and letters are those of
`mova_engine/ops/reference.py`. `OPERATORS` is what `python -m mova_engine.bench` measures against.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# One table of complex numbers per table of cosines: the published model also makes its table once per forward, for all
# blocks.
_rotations: WeakIdKeyDictionary = WeakIdKeyDictionary()


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """RMSNorm of x [b, s, d] in float32 (float64 for float64), rounded to x's dtype, times the weight [d]."""
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def rms_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float, interleaved: bool) -> Tensor:
    """RMSNorm of x [b, s, h*e], then the rotation of each head by cos, sin [s, e/2]."""
    heads = rms_norm(x, weight, eps=eps).unflatten(-1, (-1, 2 * cos.shape[-1]))
    if interleaved:
        pairs = torch.view_as_complex(heads.to(torch.float64).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * _rotation(cos, sin)).flatten(2).to(x.dtype)
    cos, sin = (torch.cat([t, t], -1).to(x.dtype).unsqueeze(1) for t in (cos, sin))
    first, second = heads.chunk(2, -1)
    return (heads * cos + torch.cat([-second, first], -1) * sin).flatten(2)


def _rotation(cos: Tensor, sin: Tensor) -> Tensor:
    """cos + i sin in complex128, [s, 1, e/2]."""
    if cos not in _rotations:
        _rotations[cos] = torch.complex(cos.to(torch.float64), sin.to(torch.float64)).unsqueeze(1)
    return _rotations[cos]


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """`layer_norm(x) * (1 + scale) + shift`. x [b, s, d]; shift, scale [b, d]."""
    shift, scale = (t.to(x.dtype).unsqueeze(1) for t in (shift, scale))
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """LayerNorm of x [b, s, d] with weight and bias [d]."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """`x + gate * y`, or `x + y` without a gate. x, y [b, s, d]; gate [b, d]."""
    return x + y if gate is None else x + gate.to(x.dtype).unsqueeze(1) * y


def gate_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """The gated residual and its affine LayerNorm."""
    r = gate_residual(x, y, gate)
    return r, layer_norm(r, weight, bias, eps=eps)


def gate_residual_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """The gated residual and its modulated LayerNorm."""
    r = gate_residual(x, y, gate)
    return r, norm_modulate(r, shift, scale, eps=eps)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer, then GELU in its tanh approximation."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, *, scale: float
) -> Tensor:
    """A linear layer and its adapter's branch, added."""
    return F.linear(x, weight, bias) + F.linear(F.linear(x, lora_a), lora_b) * scale


def shared_linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], again: object = None
) -> tuple[Tensor, ...]:
    """Linear layers of one input, one by one; the input is kept for their backward."""
    return tuple(F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))


def feed_forward(
    x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, again: object = None
) -> Tensor:
    """A linear layer, GELU, a linear layer."""
    return F.linear(linear_gelu(x, up, up_bias), down, down_bias)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own scaled dot-product attention. q [b, s, h, e], k and v [b, n, h, e]."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


OPERATORS = {
    function.__name__: function
    for function in (
        rms_norm,
        rms_norm_rope,
        norm_modulate,
        layer_norm,
        gate_residual,
        gate_residual_norm,
        gate_residual_norm_modulate,
        linear_gelu,
        lora_linear,
        shared_linear,
        feed_forward,
        attention,
    )
}
