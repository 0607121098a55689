"""What both towers share: linear layers, attention, time and text embeddings, the transformer block, the head.

Sub-module names give the checkpoint's parameter names; the few classes that only exist for a name say so.
Blocks pass a `ResidualStream`: the residual and an update not yet added to it, so that the addition and the norm that
follows can be one operator.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils import _pytree as pytree

from mova_engine.config.model import TowerConfig
from mova_engine.models.clip_updates import ClipUpdates, Product, Update
from mova_engine.models.context_parallel import SharedAttention, exchanging
from mova_engine.models.fp8_products import Fp8Products
from mova_engine.models.token_chunks import in_token_chunks
from mova_engine.models.weight_formats import WEIGHT, WeightFormat
from mova_engine.ops import OpTable
from mova_engine.ops.fused_linear import Recompute
from mova_engine.ops.half_products import PlainLinear, in_float32, linear

Rope = tuple[Tensor, Tensor]
# Receives the name and the value of a state inside the model.
Trace = Callable[[str, Tensor], None]


class LayerOptions(NamedTuple):
    """How a layer is run. tokens: of the whole clip, where processes share it and the video stream has this one's part.
    recomputed: the backward runs the layer again, so that nothing within it need be computed a third time.
    chunk_rows: tokens of a chunk in which the feed-forward, and norm and rotation of q and k, are run
    (`models.token_chunks`); None: all at once.
    """

    tokens: int | None = None
    recomputed: bool = False
    chunk_rows: int | None = None


WHOLE = LayerOptions()


class _UsedOnce:
    """Base of values that a caller may still hold while a layer runs. Where no gradient is recorded, whoever uses one
    takes the tensors out of it, so that their memory is free as soon as they have served. Using it again is an
    AttributeError. Dataclasses, and pytrees: FSDP looks for the tensors in what a module is given and returns.
    """

    def __init_subclass__(cls) -> None:
        pytree.register_pytree_node(cls, lambda value: (list(value), None), lambda parts, _: cls(*parts))

    def __iter__(self) -> Iterator[Any]:
        return iter([getattr(self, name) for name in self.__dataclass_fields__])  # type: ignore[attr-defined]

    def _used(self) -> None:
        if not torch.is_grad_enabled():
            self.__dict__.clear()


@dataclass(eq=False)
class ResidualStream(_UsedOnce):
    """A residual stream: x [b, s, d] and a pending update, so that its value is `x + gate * y` (y None: just x).

    gate [b * g, d]: a row for each of g equal groups of consecutive tokens of a clip, as `shift` and `scale` of a norm
    have. Operators take a row per clip: they see each group as a clip, which is a view. Without gradients it serves
    once: what gives its value takes its tensors.
    """

    x: Tensor
    y: Tensor | None = None
    gate: Tensor | None = None

    def settle(self, ops: OpTable) -> Tensor:
        """The stream's value [b, s, d]."""
        x, y, gate = self._grouped(1)
        value = self.x if y is None else self._whole(ops.gate_residual(x, y, gate))
        self._used()
        return value

    def _grouped(self, rows: int) -> "ResidualStream":
        """The stream with each group of tokens as a clip, for an operator that has `rows` rows of its own."""
        rows = max(rows, len(self.x) if self.gate is None else len(self.gate))
        if rows == len(self.x):
            return self
        gate = self.gate
        if gate is not None and len(gate) < rows:
            gate = gate.repeat_interleave(rows // len(gate), 0)
        shape = (rows, -1, self.x.shape[-1])
        return ResidualStream(self.x.reshape(shape), None if self.y is None else self.y.reshape(shape), gate)

    def _whole(self, x: Tensor) -> Tensor:
        """x, of groups or not, in the stream's shape."""
        return x if x.shape == self.x.shape else x.view_as(self.x)

    def add_norm_modulate(
        self, ops: OpTable, shift: Tensor, scale: Tensor, eps: float, options: LayerOptions = WHOLE
    ) -> tuple[Tensor, "NormOutput"]:
        """(value, its modulated LayerNorm), [b, s, d] each. shift, scale [b * g, d]."""
        x, y, gate = self._grouped(len(shift))
        if y is None:
            value, h = x, ops.norm_modulate(x, shift, scale, eps=eps)
        else:
            value, h = ops.gate_residual_norm_modulate(x, y, gate, shift, scale, eps=eps)
        again = None if options.recomputed else Recompute(ops.norm_modulate, (value, shift, scale), {"eps": eps})
        return self._normed(value, h, again)

    def add_norm(
        self, ops: OpTable, norm: "NormParameters", eps: float, options: LayerOptions = WHOLE
    ) -> tuple[Tensor, "NormOutput"]:
        """(value, its affine LayerNorm), [b, s, d] each."""
        x, y, gate = self._grouped(1)
        if y is None:
            value, h = x, ops.layer_norm(x, norm.weight, norm.bias, eps=eps)
        else:
            value, h = ops.gate_residual_norm(x, y, gate, norm.weight, norm.bias, eps=eps)
        again = None
        if not options.recomputed:
            again = Recompute(ops.layer_norm, (value, norm.weight, norm.bias), {"eps": eps})
        return self._normed(value, h, again)

    def _normed(self, value: Tensor, h: Tensor, again: Recompute | None) -> tuple[Tensor, "NormOutput"]:
        value, h = self._whole(value), self._whole(h)
        self._used()
        return value, NormOutput(h, again if torch.is_grad_enabled() else None)


@dataclass(eq=False)
class NormOutput(_UsedOnce):
    """A norm's output x [b, s, d], and how a backward gets it from what the norm keeps anyway (None: it is kept), as
    rows of any shape.
    """

    x: Tensor
    again: Recompute | None = None

    def take(self) -> Tensor:
        """x, for the last one who needs it."""
        x = self.x
        self._used()
        return x


class NormParameters(nn.Module):
    """Weight (and bias) of a norm; the operators compute."""

    def __init__(self, dim: int, bias: bool, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, **factory))
        self.bias = nn.Parameter(torch.zeros(dim, **factory)) if bias else None


class Linear(nn.Linear):
    """nn.Linear that can carry a low-rank adapter, `x W^T + b + scale * (x A^T) B^T`, hold W quantised, or train W by
    fp8 products.

    fp8: how these are computed, where a gradient is recorded; else, and with None, all is in W's dtype.
    clip_updates: the clips of a batch take updates of their own in place of the adapter; None: they do not.
    weight_format: in which W is held, with all that belongs to it beside it, as buffers; None: as a plain parameter.
    These buffers are no part of the state: `checkpoints.quantised_files` reads and writes such weights.
    """

    bias: nn.Parameter

    def __init__(self, in_features: int, out_features: int, ops: OpTable, **factory: Any) -> None:
        super().__init__(in_features, out_features, bias=True, **factory)
        self.ops = ops
        self.lora_A: nn.Linear | None = None
        self.lora_B: nn.Linear | None = None
        self.lora_scale = 1.0
        self.clip_updates: ClipUpdates | None = None
        self.fp8: Fp8Products | None = None
        self.weight_format: WeightFormat | None = None
        # Names of the buffers that belong to a quantised weight.
        self._beside: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        return self._with_updates(x, lambda rows, update: self._product(rows, self.bias, update))

    @property
    def plain(self) -> bool:
        """Neither an adapter nor a quantised weight, nor fp8 products now."""
        return self.lora_A is None and self.clip_updates is None and self.weight_format is None and not self._in_fp8

    @property
    def _in_fp8(self) -> bool:
        return self.fp8 is not None and torch.is_grad_enabled()

    def gelu(self, x: Tensor) -> Tensor:
        """The layer and tanh-GELU. Unless the layer is plain, the bias may wait for GELU's pass, at no cost."""
        return self._with_updates(x, self._gelu)

    def _gelu(self, x: Tensor, update: Update | None) -> Tensor:
        if update is None and self.weight_format is None and not self._in_fp8 and not in_float32(x):
            return self.ops.linear_gelu(x, self.weight, self.bias)
        return self.ops.gelu_of_product(lambda bias: self._product(x, bias, update), self.bias)

    def _with_updates(self, x: Tensor, product: Product) -> Tensor:
        if self.clip_updates is not None:
            return self.clip_updates.product(x, product)
        if self.lora_A is None or self.lora_B is None:
            return product(x, None)
        return product(x, Update(self.lora_A.weight, self.lora_B.weight, self.lora_scale))

    def hold(self, weight_format: WeightFormat | None, tensors: Mapping[str, Tensor]) -> None:
        """Take a weight in a format: `tensors` by the names that the format gives them, "weight" among them. None: a
        plain one, "weight" alone. What was held before is dropped.
        """
        for name in self._beside:
            delattr(self, name)
        self.weight_format = weight_format
        self._beside = tuple(name for name in tensors if name != WEIGHT)
        for name, tensor in tensors.items():
            if name == WEIGHT:
                self.weight = nn.Parameter(tensor, requires_grad=False)
            else:
                self.register_buffer(name, tensor, persistent=False)

    def held(self) -> dict[str, Tensor]:
        """What is held of the weight, as `hold` takes it."""
        return {WEIGHT: self.weight, **{name: getattr(self, name) for name in self._beside}}

    def _product(self, x: Tensor, bias: Tensor | None, update: Update | None) -> Tensor:
        a, b, scale = (None, None, 1.0) if update is None else update
        if self.weight_format is not None:
            return self.weight_format.product(self.ops, self.held(), x, (bias, a, b, scale))
        if a is None:
            if self.fp8 is not None and self._in_fp8:
                return self.fp8.product(self.ops, x, self.weight, bias)
            return linear(x, self.weight, bias)
        return self.ops.lora_linear(x, self.weight, bias, a, b, scale=scale)


def project(ops: OpTable, inputs: NormOutput, *layers: Linear) -> tuple[Tensor, ...]:
    """Several linear layers of one input [b, s, d]."""
    return tuple(projections(ops, inputs, *layers))


def projections(ops: OpTable, inputs: NormOutput, *layers: Linear) -> Iterator[Tensor]:
    """`project`, one after the other as they are asked for; plain layers, which are one operator, all at once."""
    if all(layer.plain for layer in layers):
        weights, biases = zip(*((layer.weight, layer.bias) for layer in layers), strict=True)
        again = inputs.again
        return iter(ops.shared_linear(inputs.take(), weights, biases, again))
    x = inputs.take()
    return (layer(x) for layer in layers)


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [cos | sin] of timesteps [b] (0..1000): frequencies 10000^(-i/half); float64 [b, dim]."""
    half = dim // 2
    frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angles = torch.outer(timestep.to("cpu", torch.float64), frequencies)
    return torch.cat([angles.cos(), angles.sin()], -1)


def time_mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    """A time MLP in float32 whatever the parameters' dtype: in bf16 the timestep would lose its low digits."""
    for layer in layers:
        x = (
            layer(x)
            if not isinstance(layer, nn.Linear)
            else nn.functional.linear(x, layer.weight.float(), layer.bias.float())
        )
    return x


def scaled_normal(*shape: int, **factory: Any) -> nn.Parameter:
    """A parameter of normal values with deviation 1 / sqrt(last size); on the meta device none are drawn, since torch
    would import its compiler for them.
    """
    x = torch.empty(shape, **factory)
    return nn.Parameter(x if x.is_meta else x.normal_() / shape[-1] ** 0.5)


class SelfAttention(nn.Module):
    """q, k with RMSNorm over all heads and rotary embedding; attention; output projection."""

    def __init__(self, dim: int, num_heads: int, eps: float, ops: OpTable, attention: Callable, **factory: Any) -> None:
        """attention: the operator in the role that it has here."""
        super().__init__()
        self.num_heads, self.eps, self.ops, self.attention = num_heads, eps, ops, attention
        self.q, self.k, self.v, self.o = (Linear(dim, dim, ops, **factory) for _ in range(4))
        self.norm_q, self.norm_k = (NormParameters(dim, bias=False, **factory) for _ in range(2))

    def forward(
        self, inputs: NormOutput, rope: Rope, trace: Trace | None = None, options: LayerOptions = WHOLE
    ) -> Tensor:
        """inputs of [b, s, d], rope (cos, sin) [s, e/2] -> [b, s, d]."""
        if trace is None and exchanging(self.attention, options.tokens):
            return self.o(self._exchanged(self.attention, inputs, rope, options).flatten(-2))
        q, k, v = project(self.ops, inputs, self.q, self.k, self.v)
        q = self._rotated(q, self.norm_q.weight, rope, options.chunk_rows)
        k = self._rotated(k, self.norm_k.weight, rope, options.chunk_rows)
        if trace:
            trace("q_rope", q)
            trace("k_rope", k)
        heads = [t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v)]
        del q, k, v  # not needed beside the output projection's result
        return self.o(attend(self.attention, heads, options.tokens).flatten(-2))

    def _exchanged(self, attention: SharedAttention, inputs: NormOutput, rope: Rope, options: LayerOptions) -> Tensor:
        """The attention's output [b, s, h, e], where each of q, k and v leaves for other ranks as soon as it is there:
        first the values, which are neither normalised nor rotated.
        """
        tokens = options.tokens
        assert tokens is not None, "only shared clips are exchanged"

        def send(x: Tensor) -> Any:
            return attention.send(x.unflatten(-1, (self.num_heads, -1)), tokens)

        # Plain layers are one product.
        projected = projections(self.ops, inputs, self.v, self.q, self.k)
        v = send(next(projected))
        q = send(self._rotated(next(projected), self.norm_q.weight, rope, options.chunk_rows))
        k = send(self._rotated(next(projected), self.norm_k.weight, rope, options.chunk_rows))
        return attention.finish(q, k, v, tokens)

    def _rotated(self, x: Tensor, weight: Tensor, rope: Rope, chunk_rows: int | None) -> Tensor:
        def norm_rope(x: Tensor, tokens: slice) -> Tensor:
            cos, sin = (table[tokens] for table in rope)
            return self.ops.rms_norm_rope(x, weight, cos, sin, eps=self.eps, interleaved=True)

        return in_token_chunks(norm_rope, x, chunk_rows, (weight,))


def attend(attention: Callable, heads: list[Tensor], tokens: int | None = None) -> Tensor:
    """An attention in its role to q, k and v, which the list is emptied of. tokens: the whole clip's, where processes
    share it; only such roles are told.
    """
    q, k, v = heads
    heads.clear()
    return attention(q, k, v) if tokens is None else attention(q, k, v, tokens)


class CrossAttention(SelfAttention):
    """Attention to the text: q and k are normalised, nothing is rotated."""

    def forward(self, inputs: NormOutput, context: Tensor) -> Tensor:
        """inputs of [b, s, d], context [b, n, d] -> [b, s, d]."""
        (q,) = project(self.ops, inputs, self.q)
        k, v = project(self.ops, NormOutput(context), self.k, self.v)
        q = self.ops.rms_norm(q, self.norm_q.weight, eps=self.eps)
        k = self.ops.rms_norm(k, self.norm_k.weight, eps=self.eps)
        heads = [t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v)]
        del q, k, v
        return self.o(attend(self.attention, heads).flatten(-2))


class FeedForward(nn.Sequential):
    """Linear, tanh-GELU, linear; a Sequential so that the parameters are called ffn.0 and ffn.2."""

    def __init__(self, dim: int, ffn_dim: int, ops: OpTable, **factory: Any) -> None:
        super().__init__(
            Linear(dim, ffn_dim, ops, **factory), nn.GELU(approximate="tanh"), Linear(ffn_dim, dim, ops, **factory)
        )
        self.ops = ops

    def forward(self, inputs: NormOutput, chunk_rows: int | None = None) -> Tensor:
        """inputs of [b, s, d] -> [b, s, d]. chunk_rows: see `LayerOptions`."""
        if chunk_rows is not None and inputs.x.shape[:-1].numel() > chunk_rows:
            return in_token_chunks(lambda x, _: self._whole(x), inputs.take(), chunk_rows, tuple(self.parameters()))
        up, down = self._products
        if torch.is_grad_enabled() and up.plain and down.plain and inputs.again is not None:
            return self.ops.feed_forward(inputs.x, up.weight, up.bias, down.weight, down.bias, inputs.again)
        return self._whole(inputs.take())

    @property
    def _products(self) -> tuple[Linear, Linear]:
        up, _, down = self
        assert isinstance(up, Linear) and isinstance(down, Linear)
        return up, down

    def _whole(self, x: Tensor) -> Tensor:
        """Where a norm's output is kept, since the layer is recomputed, so is GELU's."""
        up, down = self._products
        if torch.is_grad_enabled() and up.plain and down.plain:
            return self._trained(x, up, down)
        hidden = up.gelu(x)
        del x  # not needed beside the second product's result
        return down(hidden)

    def _trained(self, x: Tensor, up: Linear, down: Linear) -> Tensor:
        shared = self.ops.shared_linear
        hidden = self.ops.gelu_of_product(lambda bias: shared(x, (up.weight,), (bias,))[0], up.bias)
        return shared(hidden, (down.weight,), (down.bias,))[0]


class Block(nn.Module):
    """A DiT block: modulated self-attention, text cross-attention, modulated feed-forward (Wan's form of Peebles &
    Xie).
    """

    def __init__(self, config: TowerConfig, ops: OpTable, self_attention: Callable, **factory: Any) -> None:
        super().__init__()
        dim, heads, self.eps, self.ops = config.dim, config.num_heads, config.eps, ops
        self.self_attn = SelfAttention(dim, heads, self.eps, ops, self_attention, **factory)
        self.cross_attn = CrossAttention(dim, heads, self.eps, ops, ops.attention, **factory)
        self.norm3 = NormParameters(dim, bias=True, **factory)
        self.ffn = FeedForward(dim, config.ffn_dim, ops, **factory)
        self.modulation = scaled_normal(1, 6, dim, **factory)

    def forward(
        self,
        stream: ResidualStream,
        t_mod: Tensor,
        context: Tensor,
        rope: Rope,
        trace: Trace | None = None,
        options: LayerOptions = WHOLE,
    ) -> ResidualStream:
        """stream of [b, s, d], t_mod [b * g, 6, d] float32 (a row for each of g equal groups of a clip's tokens),
        context [b, n, d], rope (cos, sin) -> stream with a pending update.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + t_mod).unbind(1)
        x, h = stream.add_norm_modulate(self.ops, shift1, scale1, self.eps, options)
        if trace:
            trace("self_attn_in", h.x)
        h = self.self_attn(h, rope, trace, options)
        if trace:
            trace("self_attn", h)
        x, h = ResidualStream(x, h, gate1).add_norm(self.ops, self.norm3, self.eps, options)
        h = self.cross_attn(h, context)
        if trace:
            trace("cross_attn", h)
        x, h = ResidualStream(x, h).add_norm_modulate(self.ops, shift2, scale2, self.eps, options)
        h = self.ffn(h, options.chunk_rows)
        if trace:
            trace("ffn", h)
        return ResidualStream(x, h, gate2)


class Head(nn.Module):
    """Last norm, modulation by the time embedding itself, projection to patches."""

    def __init__(self, config: TowerConfig, patch_volume: int, ops: OpTable, **factory: Any) -> None:
        super().__init__()
        self.eps, self.ops = config.eps, ops
        self.head = PlainLinear(config.dim, config.out_dim * patch_volume, **factory)
        self.modulation = scaled_normal(1, 2, config.dim, **factory)

    def forward(self, stream: ResidualStream, t: Tensor) -> Tensor:
        """stream of [b, s, d], t [b * g, d] float32 -> [b, s, out_dim * patch volume]."""
        shift, scale = (self.modulation.float() + t.unsqueeze(1)).unbind(1)
        return self.head(stream.add_norm_modulate(self.ops, shift, scale, self.eps)[1].x)
