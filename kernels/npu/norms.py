"""Norms, rotary embedding, modulation, gates and GELU on rows of activations.

Shapes: x and y [b, s, d] in float32, bfloat16 or float16; weight and bias [d]; shift, scale and gate [b, d], float32.
Where torch_npu has no fused operator with a gradient, an autograd function keeps x and y as they came, in their own
narrow dtype, and composes kernels that compute in float32. Which of CANN's kernels take narrow rows beside float32
without a cast is read off its sources: aclnnAdd, aclnnMul, aclnnLayerNorm and its backward, and off its documentation
of aclnnAddLayerNorm and aclnnRmsNormGrad.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# npu_rotary_mul: batch times heads below the first, head dim below the second and even.
ROTARY_ROWS, ROTARY_HEAD_DIM = 1000, 896
# Elements that a rotation, a gate and GELU take in float32 at once. Few: what their calls hand on, up to 22 bytes an
# element, fits the cache of level two, which has 192 MB in the 910B series by CANN's sources. Many beside what a call
# of the device costs.
_CHUNK = 1 << 23


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """RMSNorm over the last axis by `npu_rms_norm`."""
    return torch.ops.npu.npu_rms_norm(x, weight.to(x.dtype), eps)[0]


def rms_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float, interleaved: bool) -> Tensor:
    """RMSNorm over all heads with the statistic of `npu_rms_norm`, and rotary embedding of each by `npu_rotary_mul`.

    cos and sin [s, e/2]. In float32: both operators round what they return to the dtype of what they take, and the
    second demands its tables in that dtype. ValueError beyond the operator's limits.
    """
    head_dim = 2 * cos.shape[-1]
    heads = x.shape[-1] // head_dim
    if head_dim >= ROTARY_HEAD_DIM or heads >= ROTARY_ROWS:
        raise ValueError(
            f"npu_rotary_mul takes head dims below {ROTARY_HEAD_DIM} and fewer than {ROTARY_ROWS} heads, got "
            f"{heads} heads of {head_dim}; the reference takes them"
        )
    return _RmsNormRope.apply(x, weight, cos, sin, eps, interleaved)


class _RmsNormRope(torch.autograd.Function):
    """Keeps x as it came and a statistic a row. A rotation's gradient is the rotation back.

    Forward: a row's statistic is a factor of its angles' cosines and sines, so that what is rotated is the product of
    bfloat16 rows and the weight in float32, one kernel without a cast before. Only the statistic is taken of
    `npu_rms_norm`: what it makes of bfloat16 rows is rounded. Rows are taken in chunks, so that no tensor of x's size
    is in float32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, interleaved: bool) -> Tensor:
        rstd = torch.ops.npu.npu_rms_norm(x, weight.to(x.dtype), eps)[1]
        ctx.save_for_backward(x, weight, rstd, cos, sin)
        ctx.interleaved, factor = interleaved, weight.float()
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for rows, c, s, result in _chunks(x, rstd * cos.float(), rstd * sin.float(), y):
            result.copy_(_rotated(rows * factor, c, s, interleaved))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd, cos, sin = ctx.saved_tensors
        dx, factor = torch.empty(x.shape, dtype=x.dtype, device=x.device), weight.float()
        dweight = torch.zeros_like(factor)
        back = (table.float().expand(len(x), -1, -1) for table in (cos, -sin))
        for rows, cotangent, scale, c, s, result in _chunks(x, grad, rstd, *back, dx):
            turned = _rotated(cotangent.float(), c, s, ctx.interleaved)
            each, part = torch.ops.npu.npu_rms_norm_backward(turned, rows.float(), factor, scale)
            dweight += part
            result.copy_(each)
        return dx, dweight.to(weight.dtype), None, None, None, None


def _rotated(rows: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Each head of rows [n, h*e] turned by the angles of cos and sin [n, e/2], all float32."""
    head_dim = 2 * cos.shape[-1]
    # The layout [1, n, h, e] with tables [1, n, 1, e]: the operator limits samples times heads, not tokens.
    tables = (_both_of_a_pair(table, interleaved).view(1, -1, 1, head_dim) for table in (cos, sin))
    heads = rows.reshape(1, len(rows), -1, head_dim)
    return torch.ops.npu.npu_rotary_mul(heads, *tables, "interleave" if interleaved else "half").view(rows.shape)


def _both_of_a_pair(table: Tensor, interleaved: bool) -> Tensor:
    """[n, e/2] -> [n, e]: the entry of both channels of each pair."""
    return table.repeat_interleave(2, -1) if interleaved else torch.cat((table, table), -1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """LayerNorm with weight and bias over the last axis: one kernel."""
    return _LayerNorm.apply(x, weight, bias, eps)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """`layer_norm(x) * (1 + scale) + shift`: the modulation is the weight and bias of each sample's norm."""
    return _LayerNorm.apply(x, 1 + scale.float(), shift, eps)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x + bias)` in the tanh form by `npu_gelu`, in float32: the sum is not rounded before. Rows are taken in
    chunks, so that no tensor of x's size is in float32.
    """
    return _BiasGelu.apply(x, bias)


def gelu(x: Tensor) -> Tensor:
    """`gelu(x)` in the tanh form: one kernel each way."""
    return torch.ops.npu.npu_gelu(x, approximate="tanh")


# Where x comes of a product, that can add the bias at no cost, and casts and chunks are saved: 2 passes instead of 10.
bias_gelu.of_sum = gelu


class _BiasGelu(torch.autograd.Function):
    """Keeps x as it came."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for rows, result in _chunks(x, y):
            result.copy_(torch.ops.npu.npu_gelu(_sum(rows, bias), approximate="tanh"))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dbias = torch.zeros_like(bias, dtype=torch.float32)
        for rows, cotangent, result in _chunks(x, grad, dx):
            each = torch.ops.npu.npu_gelu_backward(cotangent.float(), _sum(rows, bias), approximate="tanh")
            dbias += each.sum(0)
            result.copy_(each)
        return dx, dbias.to(bias.dtype)


def _sum(rows: Tensor, bias: Tensor) -> Tensor:
    """float32, of rows in any dtype."""
    return rows + bias.float()


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all tensors [..., d], whatever their widths; at most `_CHUNK` elements of the first at once."""
    flat = [x.reshape(-1, x.shape[-1]) for x in tensors]
    step = max(1, _CHUNK // flat[0].shape[1])
    return zip(*(x.split(step) for x in flat), strict=True)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """`x + gate * y`, or `x + y`."""
    # The device adds half types in float32 and rounds once.
    return (x + y).to(x.dtype) if gate is None else _GateResidual.apply(x, y, gate)


def gate_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y` and its affine LayerNorm; without a gate one kernel, which normalises r as it was before it
    was rounded.
    """
    if gate is None:
        return _AddLayerNorm.apply(x, y, weight, bias, eps)
    r = gate_residual(x, y, gate)
    return r, layer_norm(r, weight, bias, eps=eps)


def gate_residual_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y` and its modulated LayerNorm, as in `gate_residual_norm`."""
    return gate_residual_norm(x, y, gate, 1 + scale.float(), shift, eps=eps)


def _each_sample(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """The results of a function of one sample for every sample of `tensors` [b, ...], each stacked to [b, ...].

    The device's kernels take one vector for all rows of a call. Of one sample nothing is copied.
    """
    if len(tensors[0]) == 1:
        return tuple(x.unsqueeze(0) for x in function(*(x.squeeze(0) for x in tensors)))
    samples = zip(*(x.unbind(0) for x in tensors), strict=True)
    return tuple(torch.stack(results) for results in zip(*(function(*sample) for sample in samples), strict=True))


def _for_weight(weight: Tensor, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """`function(*tensors)`, at once where the weight is [d], sample by sample where it is [b, d]."""
    return function(*tensors) if weight.ndim == 1 else _each_sample(function, *tensors)


class _LayerNorm(torch.autograd.Function):
    """`(x - mean) * rstd * weight + bias` with weight and bias [d], or [b, d]. Keeps x and two statistics a row.

    The device's kernels take rows in half precision beside a weight and bias in float32: they compute in float32, round
    the rows once, and return the gradients of weight and bias in float32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        def norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
            return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)

        y, mean, rstd = _for_weight(weight, norm, x, weight.float(), bias.float())
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return y.to(x.dtype)  # autocast would make it float32

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_norm_backward(grad, *ctx.saved_tensors), None


class _AddLayerNorm(torch.autograd.Function):
    """`r = x + y` and its LayerNorm by `npu_add_layer_norm`. Keeps r and two statistics a row.

    The operator's own gradient wants the weight in the dtype of the rows, in which a modulation would be rounded.
    """

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        def add_norm(*tensors: Tensor) -> tuple[Tensor, ...]:
            return torch.ops.npu.npu_add_layer_norm(*tensors, eps, True)

        normed, mean, rstd, r = _for_weight(weight, add_norm, x, y.to(x.dtype), weight.float(), bias.float())
        ctx.save_for_backward(r, mean, rstd, weight, bias)
        ctx.dtype = y.dtype
        return r, normed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dr: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = _norm_backward(grad, *ctx.saved_tensors)
        dx = dr + dx
        return dx, dx.to(ctx.dtype), dweight, dbias, None


def _norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias of a LayerNorm, from its statistics [b, s, 1] in float32."""

    def backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *affine: Tensor) -> tuple[Tensor, ...]:
        wanted = [True, True, True]
        return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, *affine, wanted)

    dx, dweight, dbias = _for_weight(weight, backward, grad, x, mean, rstd, weight.float(), bias.float())
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)


class _GateResidual(torch.autograd.Function):
    """Keeps y and the gate.

    Forward: CANN multiplies and adds rows in half precision and a tensor in float32 without a cast before (`addcmul`
    casts), so that the product and the sum are in float32, and the result is rounded once. Rows are taken in chunks, so
    that no tensor of x's size is in float32.

    Backward, with g the gradient of the result: dy = gate * g and dgate = sum(g * y) over the tokens, by one call of
    `npu_rms_norm_backward`. That computes dx = rstd * (weight * g - x * rstd * mean(weight * g * x * rstd)) and
    dweight = sum(g * x * rstd) in float32, of whatever statistic it is given. With x = y, rstd = 1/S and
    weight = S * gate these are dx = gate * g - y * mean(gate * g * y) / S^2 and dweight = dgate / S. S is a power of
    two, so that scaling by it is exact, and so large that the second term is nothing in float32.
    """

    SCALE = 2.0**24

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(y, gate)
        r = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for *sample, row in zip(x, y, r, gate.float(), strict=True):
            for residual, update, result in _chunks(*sample):
                result.copy_(torch.add(residual, torch.mul(update, row)))
        return r

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, gate = ctx.saved_tensors
        scale = _GateResidual.SCALE

        def backward(grad: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            rstd = torch.full((*y.shape[:-1], 1), 1 / scale, dtype=torch.float32, device=y.device)
            return torch.ops.npu.npu_rms_norm_backward(grad, y, weight, rstd)

        dy, dgate = _each_sample(backward, grad.to(y.dtype), y, scale * gate.float())
        return grad, dy, (scale * dgate).to(gate.dtype)
