"""Inputs on which operators are tested and measured: MOVA's own shapes, awkward ones, and inputs that tell.

The last are such that a mistake shows above the rounding of half precision: rows so small that eps matters, rows of
zeros where it must be there at all, modulations whose own rounding is not lost in the result's, GELU where its two
forms differ most, scores that overflow without the maximum taken off.
"""

from collections.abc import Callable
from typing import Any

import torch

from mova_engine.ops.registry import Case

# (batch, tokens, channels, head dim): MOVA's two widths with few tokens, the laptop's width, then odd lengths and
# one token.
_ROWS = {
    "video-width": (1, 6, 5120, 128),
    "audio-width": (2, 7, 1536, 128),
    "nano": (2, 81, 96, 48),
    "odd-length": (3, 13, 256, 128),
    "one-token": (1, 1, 128, 128),
}
# On a CPU: the widths and lengths of bench-mid's video tower and of a long audio tower.
_CPU_ROWS = {"1280x768": (1, 1280, 768, 128), "8192x1536": (1, 8192, 1536, 128)}
_BENCH_ROWS = _CPU_ROWS | {
    "360p": (1, 43120, 5120, 128),
    "360p-cp4": (1, 10780, 5120, 128),
    "720p": (1, 176400, 5120, 128),
}


class Maker:
    """Draws tensors from one generator, on the CPU so that every device gets the same values."""

    def __init__(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        self.generator, self.device, self.dtype = generator, device, dtype

    def __call__(
        self, *shape: int, scale: float = 1.0, offset: float = 0.0, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale + offset
        return x.to(self.device, dtype or self.dtype)

    def strided(self, *shape: int) -> torch.Tensor:
        """A tensor whose last axis is contiguous and whose rows are not adjacent."""
        return self(*shape[:-1], 2 * shape[-1])[..., : shape[-1]]

    @property
    def wide(self) -> torch.dtype:
        """The precision of tables, modulations and statistics."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


Build = Callable[[Maker, int, int, int, int], dict[str, Any]]


def _case(name: str, build: Build, shape: tuple[int, int, int, int], size: str = "test") -> Case:
    b, s, d, last = shape
    # The fourth number of a row case is the head dim, of a linear layer its output width.
    elements = b * s * max(d, last)
    return Case(name, lambda generator, device, dtype: build(Maker(generator, device, dtype), *shape), size, elements)


# A row of every kind: (factor of a normal draw, offset). Constants have few digits, so that their mean is exact.
_KINDS = ((0, 0), (0, 0.5), (1e-3, 0), (1e-4, 0), (1, 512), (1e3, 0), (1, 0), (0.1, -2))


def _every_kind(make: Maker, b: int, s: int, d: int, offsets: bool = True) -> torch.Tensor:
    """[b, s, d]: rows of zeros, of a constant, tiny ones, with a large mean, large ones; without offsets about zero."""
    kinds = torch.tensor([_KINDS[i % len(_KINDS)] for i in range(s)], dtype=torch.float64)
    scale, offset = kinds[:, :1], kinds[:, 1:] * offsets
    return (make(b, s, d, dtype=torch.float64).cpu() * scale + offset).to(make.device, make.dtype)


def row_cases(build: Build) -> tuple[Case, ...]:
    """Cases of an operator on rows of activations; `build(maker, b, s, d, e)` returns its keyword arguments."""

    def non_contiguous(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        inputs = build(make, b, s, d, e)
        return {name: make.strided(b, s, d) if name in ("x", "y") else value for name, value in inputs.items()}

    def every_kind(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        inputs = build(make, b, s, d, e)
        return inputs | {name: _every_kind(make, b, s, d, name == "x") for name in ("x", "y") if name in inputs}

    def strong_vectors(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        strong = ("shift", "scale", "gate", "bias")
        return {k: x * 8 if k in strong and x is not None else x for k, x in build(make, b, s, d, e).items()}

    return (
        *(_case(name, build, shape) for name, shape in _ROWS.items()),
        _case("non-contiguous", non_contiguous, (2, 5, 256, 128)),
        _case("every-kind", every_kind, (2, 16, 192, 48)),
        _case("strong-vectors", strong_vectors, (2, 9, 128, 64)),
        *(_case(name, build, shape, "bench") for name, shape in _BENCH_ROWS.items()),
    )


def short_rows(build: Build) -> tuple[Case, ...]:
    """A case of a norm whose rows have three channels: its gradient has one direction left, so that what it takes off
    again is most of it. They are so small that in the gradient of x + gate * y the norm's part outweighs the other.
    """

    def short(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        return {k: x / 16 if k in ("x", "y") else x for k, x in build(make, b, s, d, e).items()}

    return (_case("short-rows", short, (2, 96, 3, 1)),)


def exact_sums(build: Build) -> tuple[Case, ...]:
    """A case of a norm of x + gate * y whose numbers have so few digits that no dtype rounds the sum: what is left is
    the rounding of the norm.
    """

    def exact(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        inputs = build(make, b, s, d, e)
        sizes = {"x": (8, 2), "y": (1, 1), "gate": (8, 1)}
        return inputs | {k: inputs[k].mul(of).round().div(of).clamp(-n, n) for k, (of, n) in sizes.items()}

    return (_case("exact-sums", exact, (2, 24, 64, 32)),)


def _weight(make: Maker, d: int) -> torch.Tensor:
    return make(d, scale=0.2, offset=1.0)


def _vector(make: Maker, b: int, d: int) -> torch.Tensor:
    return make(b, d, scale=0.5, dtype=make.wide)


def rms_norm(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {"x": make(b, s, d), "weight": _weight(make, d), "eps": 1e-6}


def rms_norm_rope(interleaved: bool) -> Build:
    def build(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        angles = make(s, e // 2, scale=10.0, dtype=torch.float64)
        tables = {"cos": angles.cos().to(make.wide), "sin": angles.sin().to(make.wide)}
        return rms_norm(make, b, s, d, e) | tables | {"interleaved": interleaved}

    return build


def norm_modulate(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {"x": make(b, s, d, offset=0.5), "shift": _vector(make, b, d), "scale": _vector(make, b, d), "eps": 1e-6}


def layer_norm(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {"x": make(b, s, d, offset=0.5), "weight": _weight(make, d), "bias": make(d, scale=0.2), "eps": 1e-6}


def gate_residual(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {"x": make(b, s, d), "y": make(b, s, d), "gate": _vector(make, b, d)}


def gate_residual_norm(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return gate_residual(make, b, s, d, e) | {k: v for k, v in layer_norm(make, b, s, d, e).items() if k != "x"}


def gate_residual_norm_modulate(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return gate_residual(make, b, s, d, e) | {k: v for k, v in norm_modulate(make, b, s, d, e).items() if k != "x"}


def bias_gelu(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {"x": make(b, s, d, scale=2.0), "bias": make(d, scale=0.5)}


# Where GELU's tanh form and its definition by the normal distribution differ most, and beyond either side.
_GELU_ROWS = (-3.0, -1.5, -4.0, 0.0, 10.0, -10.0)


def gelu_cases() -> tuple[Case, ...]:
    """Cases of bias and GELU, with rows of the function's tails."""

    def tails(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        offsets = torch.tensor([_GELU_ROWS[i % len(_GELU_ROWS)] for i in range(s)], dtype=torch.float64)
        x = make(b, s, d, scale=0.5, dtype=torch.float64).cpu() + offsets[:, None]
        return {"x": x.to(make.device, make.dtype), "bias": make(d, scale=0.1)}

    return (*row_cases(bias_gelu), _case("tails", tails, (2, 18, 96, 48)))


def quantize_rows(factor: bool) -> Build:
    """Rows of very different size, among them one of zeros; with `factor` also one scale for each channel."""

    def build(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        x = make(b, s, d) * torch.logspace(-6, 2, s, device=make.device)[:, None].to(make.dtype)
        x[:, s // 2] *= 0 if s > 1 else 1
        return {"x": x, "factor": _weight(make, d) if factor else None}

    return build


def no_gate(build: Build) -> Build:
    """The same inputs with gate None: the plain residual after text cross-attention."""
    return lambda make, b, s, d, e: build(make, b, s, d, e) | {"gate": None}


def _linear(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
    return {"x": make(b, s, i), "weight": make(o, i, scale=i**-0.5), "bias": make(o, scale=0.2)}


def _lora(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
    factors = {"lora_a": make(16, i, scale=i**-0.5), "lora_b": make(o, 16, scale=0.1), "scale": 2.0}
    return _linear(make, b, s, i, o) | factors


# (batch, tokens, in, out)
_GEMMS = {"nano": (2, 69, 96, 288), "wide": (1, 5, 1536, 512), "odd": (3, 7, 33, 65), "one-token": (1, 1, 128, 64)}
_BENCH_GEMMS = {
    "1280x768x3072": (1, 1280, 768, 3072),
    "360p": (1, 43120, 5120, 13824),
    "360p-cp4": (1, 10780, 5120, 13824),
}


def gemm_cases(lora: bool = False) -> tuple[Case, ...]:
    """Cases of a linear layer; with `lora` also its low-rank factors."""
    build = _lora if lora else _linear

    def other_bias(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        # An adapter's layer without a bias; GELU's negative tail.
        inputs = build(make, b, s, i, o)
        return inputs | ({"bias": None} if lora else {"weight": inputs["weight"] / 2, "bias": inputs["bias"] - 3})

    def exact(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        inputs = build(make, b, s, i, o)
        sizes = {"x": (1, 1), "weight": (4, 8), "bias": (4, 8), "lora_a": (1, 2), "lora_b": (1, 4)}
        few = {k: inputs[k].mul(n).round().clamp(-n, n) / of for k, (n, of) in sizes.items() if k in inputs}
        return inputs | few

    def exact_tail(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        # Where the two terms of GELU's derivative nearly cancel, and where the cubic term is much of it.
        inputs = exact(make, b, s, i, o)
        bias = torch.where(torch.arange(o) % 2 == 0, -0.625, -2.0).to(inputs["bias"])
        return inputs | {"weight": inputs["weight"] / 8, "bias": bias}

    return (
        *(_case(name, build, shape) for name, shape in _GEMMS.items()),
        _case("no-bias" if lora else "tail", other_bias, (2, 17, 48, 64)),
        # Of numbers with few digits, whose products and sums no dtype rounds: what is left is GELU and its derivative.
        _case("exact", exact, (2, 40, 16, 48)),
        *(() if lora else (_case("exact-tail", exact_tail, (2, 40, 16, 48)),)),
        *(_case(name, build, shape, "bench") for name, shape in _BENCH_GEMMS.items()),
    )


def _fp8_linear(adapter: bool) -> Build:
    # The quantised weight is an input, not a part of what is judged.
    from mova_engine.ops.reference import quantize_rows_reference

    def build(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        inputs = _lora(make, b, s, i, o)
        values, scale = quantize_rows_reference(inputs["weight"])
        inputs |= {"weight": values, "weight_scale": scale.squeeze(1)}
        return inputs if adapter else inputs | {"lora_a": None, "lora_b": None}

    return build


# Sizes that are multiples of 16: see `mova_engine.ops.fp8_impl`.
_FP8_GEMMS = {"nano": (2, 69, 96, 288), "wide": (1, 5, 1536, 512), "one-token": (1, 1, 128, 64)}


def fp8_cases() -> tuple[Case, ...]:
    """Cases of a linear layer whose weight is held in fp8, with an adapter and without."""
    return (
        *(_case(name, _fp8_linear(True), shape) for name, shape in _FP8_GEMMS.items()),
        *(_case(f"{name}-no-adapter", _fp8_linear(False), shape) for name, shape in _FP8_GEMMS.items()),
        *(_case(name, _fp8_linear(True), shape, "bench") for name, shape in _BENCH_GEMMS.items()),
    )


# (batch, queries, keys, heads, head dim): self-attention, both directions of the bridge, text, odd lengths, one token.
_ATTENTIONS = {
    "self": (1, 97, 97, 3, 128),
    "audio-to-video": (2, 81, 69, 2, 48),
    "video-to-audio": (1, 13, 240, 3, 128),
    "text": (1, 33, 12, 2, 128),
    "few-queries": (2, 3, 2051, 1, 32),
    "odd-length": (3, 7, 5, 1, 64),
    "one-token": (1, 1, 1, 2, 128),
}
_BENCH_ATTENTIONS = {
    "1280x6": (1, 1280, 1280, 6, 128),
    "360p": (1, 43120, 43120, 40, 128),
    "360p-cp4": (1, 43120, 43120, 10, 128),
    "text": (1, 43120, 512, 40, 128),
    "audio-to-video": (1, 43120, 403, 40, 128),
    "video-to-audio": (1, 403, 43120, 12, 128),
    "720p": (1, 176400, 176400, 40, 128),
}


# Scores of deviation 4, which a wrong scale moves; scores about 100, which overflow unless the maximum is taken off,
# and whose log-sum-exp no half precision holds. Both with values about 2: what is missing of the weights' sum shows.
_SCORES = {"sharp": (1, 33, 65, 2, 64), "large-scores": (2, 17, 40, 1, 64)}


def _qkv(make: Maker, b: int, s: int, n: int, h: int, e: int, kind: str = "") -> dict[str, Any]:
    if kind not in _SCORES:
        return {"q": make(b, s, h, e), "k": make(b, n, h, e), "v": make(b, n, h, e)}
    scale, offset = {"sharp": (4.0, 0.0), "large-scores": (1.0, 3.5)}[kind]
    q, k = make(b, s, h, e, scale=scale, offset=offset), make(b, n, h, e, offset=offset)
    return {"q": q, "k": k, "v": make(b, n, h, e, offset=2.0)}


def _backward(make: Maker, b: int, s: int, n: int, h: int, e: int, kind: str = "") -> dict[str, Any]:
    # The shard's own keys are the first half of all keys: out and lse are those of the whole.
    from mova_engine.ops.reference import attention_lse_reference

    q, k, v = _qkv(make, b, s, 2 * n, h, e, kind).values()
    out, lse = attention_lse_reference(q.double(), k.double(), v.double())
    shard = {"q": q, "k": k[:, :n], "v": v[:, :n]}
    return {"dout": make(b, s, h, e), **shard, "out": out.to(q.dtype), "lse": lse.to(make.wide)}


def attention_cases(backward: bool = False, empty: bool = False) -> tuple[Case, ...]:
    """Cases of attention; `backward` adds dout and a global out and lse; `empty` shards without keys or queries."""
    build = _backward if backward else _qkv
    nothing = {"no-keys": (1, 5, 0, 2, 64), "no-queries": (1, 0, 5, 2, 64)}
    shapes = _ATTENTIONS | _SCORES | (nothing if empty else {})
    cases = [
        Case(name, lambda g, dev, dt, name=name, shape=shape: build(Maker(g, dev, dt), *shape, name))
        for name, shape in shapes.items()
    ]
    if not backward:
        cases.append(Case("non-contiguous", _packed_qkv))
        cases += [
            Case(
                name,
                lambda g, dev, dt, shape=shape: build(Maker(g, dev, dt), *shape),
                "bench",
                # Scores, of which a tiled kernel holds a fraction: they bound the time.
                shape[1] * shape[2] * shape[3],
            )
            for name, shape in _BENCH_ATTENTIONS.items()
        ]
    return tuple(cases)


def _packed_qkv(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    packed = Maker(generator, device, dtype)(2, 19, 3, 2, 64)
    return dict(zip(("q", "k", "v"), packed.unbind(2), strict=True))


def _merge(shards: int, scale: float = 3.0, offset: float = 0.0, empty: bool = False) -> Callable[..., dict[str, Any]]:
    def make_case(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        make = Maker(generator, device, dtype)
        outs = make(shards, 2, 11, 2, 64, offset=1.0)
        lses = make(shards, 2, 2, 11, scale=scale, offset=offset, dtype=make.wide)
        if empty:
            outs[1], lses[1] = torch.nan, -torch.inf
        return {"outs": outs, "lses": lses}

    return make_case


MERGE_CASES = (
    Case("three-shards", _merge(3)),
    Case("empty-shard", _merge(3, empty=True)),
    # exp of such sums overflows, and half precision does not hold them.
    Case("large-sums", _merge(5, scale=1.0, offset=200.0)),
)

_SHAPES = ((33, 17), (101,), (1, 6, 96))


def _gradients(scale: float, max_norm: float = 1.0, infinite: bool = False) -> Callable[..., dict[str, Any]]:
    def make_case(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        make = Maker(generator, device, dtype)
        grads = [make(*shape, scale=scale) for shape in _SHAPES]
        if infinite:
            grads[0][3, 4] = torch.inf
        return {"grads": grads, "max_norm": max_norm}

    return make_case


CLIP_CASES = (
    Case("clipped", _gradients(3.0)),
    Case("within", _gradients(0.001)),
    Case("zeros", _gradients(0.0)),
    # As small as what is added to the norm; so large that float16 does not hold the squares.
    Case("tiny", _gradients(1e-7, max_norm=1e-6)),
    Case("large", _gradients(600.0)),
    Case("infinite", _gradients(1.0, infinite=True)),
)


def _parameters(
    start: float = 1.0, size: float = 0.1, eps: float = 1e-8, weight_decay: float = 0.1
) -> Callable[..., dict[str, Any]]:
    def make_case(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        make = Maker(generator, device, dtype)
        return {
            "params": [make(*shape, scale=start) for shape in _SHAPES],
            "grads": [[make(*shape, scale=size) for shape in _SHAPES] for _ in range(3)],
            "options": {"lr": 1e-2, "betas": (0.9, 0.98), "eps": eps, "weight_decay": weight_decay},
        }

    return make_case


ADAMW_CASES = (
    Case("three-steps", _parameters()),
    # Nothing but the updates; gradients as small as eps; nothing but eps and the decay.
    Case("from-zero", _parameters(start=0.0)),
    Case("tiny-gradients", _parameters(start=0.01, size=1e-3, eps=1e-3)),
    Case("no-gradients", _parameters(size=0.0, weight_decay=2.0)),
)
