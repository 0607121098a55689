"""Inputs on which operators are tested and measured: MOVA's shapes, unusual shapes, and inputs that reveal errors.

The last kind makes a mistake larger than the rounding of half precision: rows so small that eps matters, rows of zeros
that need eps, modulations whose rounding is visible in the result, GELU where its two forms differ most, scores that
overflow unless the maximum is subtracted.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mova_engine.errors import MovaError
from mova_engine.ops import inputs as inputs_of
from mova_engine.ops.declarations import Operator
from mova_engine.ops.gguf import GGUF_KINDS
from mova_engine.ops.inputs import Build, Make, Maker

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


@dataclass(frozen=True)
class Case:
    """One set of inputs: `make(generator, device, dtype)` returns keyword arguments of the operator.

    size: "test" (fast on every device) or "bench" (MOVA's real shapes). elements: number of elements of the largest
    activation, by which a benchmark skips cases that are too large for a device.
    """

    name: str
    make: Make
    size: str = "test"
    elements: int = 0


def _case(name: str, build: Build, shape: tuple[int, int, int, int], size: str = "test") -> Case:
    b, s, d, last = shape
    # The fourth number of a row case is the head dim, of a linear layer its output width.
    elements = b * s * max(d, last)
    return Case(name, lambda generator, device, dtype: build(Maker(generator, device, dtype), *shape), size, elements)


# A row of every kind: (factor of a normal draw, offset). Constants have few digits, so that their mean is exact.
_KINDS = ((0, 0), (0, 0.5), (1e-3, 0), (1e-4, 0), (1, 512), (1e3, 0), (1, 0), (0.1, -2))


def _every_kind(make: Maker, b: int, s: int, d: int, offsets: bool = True) -> torch.Tensor:
    """[b, s, d] with rows of zeros, of a constant, of tiny values, with a large mean, of large values. offsets: False:
    all rows have mean zero.
    """
    kinds = torch.tensor([_KINDS[i % len(_KINDS)] for i in range(s)], dtype=torch.float64)
    scale, offset = kinds[:, :1], kinds[:, 1:] * offsets
    return (make(b, s, d, dtype=torch.float64).cpu() * scale + offset).to(make.device, make.dtype)


def row_cases(build: Build) -> tuple[Case, ...]:
    """Cases of an operator on rows of activations. build(maker, b, s, d, e): returns the operator's keyword
    arguments.
    """

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


def short_rows(build: Build, rows: int = 96) -> tuple[Case, ...]:
    """A case of a norm whose rows have three channels. The norm's gradient removes two of the three directions of the
    incoming one, so that an error in the removed part is large. The values are so small that in the gradient of
    x + gate * y the norm's part is the larger one; as this sum is rounded too, it takes more rows to see the error.
    """

    def short(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        return {k: x / 16 if k in ("x", "y") else x for k, x in build(make, b, s, d, e).items()}

    return (_case("short-rows", short, (2, rows, 3, 1)),)


def exact_sums(build: Build) -> tuple[Case, ...]:
    """A case of a norm of x + gate * y whose numbers have so few digits that the sum is exact in every dtype: only the
    norm rounds.
    """

    def exact(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        inputs = build(make, b, s, d, e)
        sizes = {"x": (8, 2), "y": (1, 1), "gate": (8, 1)}
        return inputs | {k: inputs[k].mul(of).round().div(of).clamp(-n, n) for k, (of, n) in sizes.items()}

    return (_case("exact-sums", exact, (2, 24, 64, 32)),)


# Inputs at which GELU's tanh form and its exact form differ most, and inputs far beyond on both sides.
_GELU_ROWS = (-3.0, -1.5, -4.0, 0.0, 10.0, -10.0)


def gelu_cases() -> tuple[Case, ...]:
    """Cases of `bias_gelu`, including one with rows in the tails of GELU, and one where the factor that multiplies x is
    small, so that rounding it once more doubles the error of every element.
    """

    def tails(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        offsets = torch.tensor([_GELU_ROWS[i % len(_GELU_ROWS)] for i in range(s)], dtype=torch.float64)
        x = make(b, s, d, scale=0.5, dtype=torch.float64).cpu() + offsets[:, None]
        return {"x": x.to(make.device, make.dtype), "bias": make(d, scale=0.1)}

    def small_factor(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        x = make(b, s, d, scale=0.25, dtype=torch.float64).cpu() - 1.25
        return {"x": x.to(make.device, make.dtype), "bias": make(d, scale=0.1)}

    own = _case("tails", tails, (2, 18, 96, 48)), _case("small-factor", small_factor, (2, 40, 64, 48))
    return (*row_cases(inputs_of.bias_gelu), *own)


# (batch, tokens, in, out)
_GEMMS = {"nano": (2, 69, 96, 288), "wide": (1, 5, 1536, 160), "odd": (3, 7, 33, 65), "one-token": (1, 1, 128, 64)}
_BENCH_GEMMS = {
    "1280x768x3072": (1, 1280, 768, 3072),
    "360p": (1, 43120, 5120, 13824),
    "360p-cp4": (1, 10780, 5120, 13824),
}


def gemm_cases(lora: bool = False) -> tuple[Case, ...]:
    """Cases of a linear layer. lora: of one with low-rank factors."""
    build = inputs_of.lora_linear if lora else inputs_of.linear

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
        # -0.625: the two terms of GELU's derivative nearly cancel. -2: the cubic term is a large part of it.
        inputs = exact(make, b, s, i, o)
        bias = torch.where(torch.arange(o) % 2 == 0, -0.625, -2.0).to(inputs["bias"])
        return inputs | {"weight": inputs["weight"] / 8, "bias": bias}

    return (
        *(_case(name, build, shape) for name, shape in _GEMMS.items()),
        _case("no-bias" if lora else "tail", other_bias, (2, 17, 48, 64)),
        # Numbers with few digits, whose products and sums are exact in every dtype: only GELU and its derivative round.
        _case("exact", exact, (2, 40, 16, 48)),
        *(() if lora else (_case("exact-tail", exact_tail, (2, 40, 16, 48)),)),
        *(_case(name, build, shape, "bench") for name, shape in _BENCH_GEMMS.items()),
    )


# Sizes that are multiples of 16: see `mova_engine.ops.fp8_impl`.
_FP8_GEMMS = {"nano": (2, 69, 96, 288), "wide": (1, 5, 1536, 160), "one-token": (1, 1, 128, 64)}


def fp8_cases() -> tuple[Case, ...]:
    """Cases of a linear layer with an fp8 weight, with and without an adapter."""
    return (
        *(_case(name, inputs_of.fp8_linear(True), shape) for name, shape in _FP8_GEMMS.items()),
        *(_case(f"{name}-no-adapter", inputs_of.fp8_linear(False), shape) for name, shape in _FP8_GEMMS.items()),
        *(_case(name, inputs_of.fp8_linear(True), shape, "bench") for name, shape in _BENCH_GEMMS.items()),
    )


def fp8_trained_cases() -> tuple[Case, ...]:
    """Cases of a trained linear layer with fp8 products: of tokens there may be any number."""

    def uneven(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        # Tokens and outputs of very different size, a token of zeros: one scale for all would lose the small ones.
        inputs = inputs_of.linear(make, b, s, i, o)
        tokens, outputs = (torch.logspace(-3, 1, n, dtype=torch.float64) for n in (s, o))
        x = inputs["x"] * tokens[:, None].to(inputs["x"])
        x[:, s // 2] = 0
        return {"x": x, "weight": inputs["weight"] * outputs[:, None].to(x), "bias": None}

    def exact(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        # Whole numbers up to 7, which is in every row and column: all are in fp8 what they are. Others lie so often
        # between two numbers of fp8 that float32's rounding decides, and much must be allowed.
        inputs = inputs_of.linear(make, b, s, i, o)
        for name, size in (("x", 4), ("weight", 4 * i**0.5)):
            whole = inputs[name].mul(size).round().clamp(-7, 7)
            whole[..., :1], whole.view(-1, i)[0] = 7, 7
            inputs[name] = whole / (4 if name == "x" else 256)
        return inputs

    return (
        *(_case(name, inputs_of.linear, shape) for name, shape in _FP8_GEMMS.items()),
        _case("uneven", uneven, (2, 32, 96, 64)),
        _case("exact", exact, (2, 32, 768, 64)),
        *(_case(name, inputs_of.linear, shape, "bench") for name, shape in _BENCH_GEMMS.items()),
    )


# Inputs of a quantised weight come in blocks: 64 of NF4, 256 of GGUF's K formats.
_QUANTISED_GEMMS = {
    "nano": (2, 69, 256, 96),
    "wide": (1, 5, 1536, 160),
    "one-token": (1, 1, 256, 64),
}


def quantised_cases(
    build: Build, other: Build, *kinds: tuple[str, Build], odd: tuple[int, int, int, int] = (3, 7, 768, 65)
) -> tuple[Case, ...]:
    """Cases of a linear layer with a quantised weight. other: without an adapter. kinds: further ways to store it. odd:
    sizes that are multiples of as little as it takes.
    """

    def one_channel(make: Maker, b: int, s: int, i: int, o: int, build: Build = build) -> dict[str, Any]:
        # Each token reads one input: a weight that is in the wrong place, or rounded twice, shows, and a wrong offset,
        # which in sums over many inputs is little.
        inputs = build(make, b, s, i, o)
        place = torch.arange(s) * 7 % i
        x = torch.zeros(b, s, i).index_put((torch.zeros(1).long(), torch.arange(s), place), torch.tensor(1.0))
        return inputs | {"x": x.to(make.device, make.dtype), "bias": None, "lora_a": None, "lora_b": None}

    return (
        *(_case(name, build, shape) for name, shape in _QUANTISED_GEMMS.items()),
        _case("odd", build, odd),
        _case("no-adapter", other, odd),
        _case("one-channel", one_channel, (1, 256, 256, 64)),
        *(_case(name, kind, _QUANTISED_GEMMS["one-token"]) for name, kind in kinds),
        *(_case(f"{name}-one-channel", partial(one_channel, build=kind), (1, 256, 256, 64)) for name, kind in kinds),
        *(_case(name, build, shape, "bench") for name, shape in _BENCH_GEMMS.items()),
    )


# (batch, queries, keys, heads, head dim): self-attention, both directions of the bridge, text, odd lengths, one token.
_ATTENTIONS = {
    "self": (1, 97, 97, 3, 128),
    "audio-to-video": (2, 81, 69, 2, 48),
    "video-to-audio": (1, 13, 240, 3, 128),
    "text": (1, 33, 12, 2, 128),
    "few-queries": (2, 3, 1027, 1, 32),
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


# "sharp": scores with standard deviation 4, on which a wrong scale shows. "large-scores": scores about 100, which
# overflow unless the maximum is subtracted, and whose log-sum-exp needs more than half precision. They are large by
# their keys: were the queries large too, scores would lie so far apart that one key has nearly all the weight, and the
# gradient of q would be a difference of which nothing is left but the rounding of the log-sum-exp. In both, the values
# v are about 2, so that an error in the sum of the weights shows.
_SCORES = {"sharp": (1, 33, 65, 2, 64), "large-scores": (2, 17, 40, 1, 64)}
_DRAWS = {
    "sharp": {"q_scale": 4.0, "v_offset": 2.0},
    "large-scores": {"q_offset": 1.75, "k_offset": 7.0, "v_offset": 2.0},
}


def attention_cases(backward: bool = False, empty: bool = False) -> tuple[Case, ...]:
    """Cases of attention. backward: with dout and a global out and lse. empty: also shards without keys or queries."""
    build = inputs_of.attention_backward if backward else inputs_of.attention
    nothing = {"no-keys": (1, 5, 0, 2, 64), "no-queries": (1, 0, 5, 2, 64)}
    shapes = _ATTENTIONS | _SCORES | (nothing if empty else {})
    cases = [
        Case(name, lambda g, dev, dt, name=name, shape=shape: build(Maker(g, dev, dt), *shape, **_DRAWS.get(name, {})))
        for name, shape in shapes.items()
    ]
    if not backward:
        cases.append(Case("non-contiguous", _packed_qkv))
        cases += [
            Case(
                name,
                lambda g, dev, dt, shape=shape: build(Maker(g, dev, dt), *shape),
                "bench",
                # The number of scores: a tiled kernel holds few of them at once, but they determine the time.
                shape[1] * shape[2] * shape[3],
            )
            for name, shape in _BENCH_ATTENTIONS.items()
        ]
    return tuple(cases)


def _packed_qkv(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    packed = Maker(generator, device, dtype)(2, 19, 3, 2, 64)
    return dict(zip(("q", "k", "v"), packed.unbind(2), strict=True))


MERGE_CASES = (
    Case("three-shards", inputs_of.merge_lse(3)),
    Case("empty-shard", inputs_of.merge_lse(3, empty=True)),
    # exp of these sums overflows, and they need more than half precision.
    Case("large-sums", inputs_of.merge_lse(5, scale=1.0, offset=200.0)),
    Case("1280x6", inputs_of.merge_lse(4, sizes=(1, 1280, 6, 128)), "bench", 4 * 1280 * 6 * 128),
    Case("360p-cp4", inputs_of.merge_lse(4, sizes=(1, 10780, 40, 128)), "bench", 4 * 10780 * 40 * 128),
)

CLIP_CASES = (
    Case("clipped", inputs_of.gradients(3.0)),
    Case("within", inputs_of.gradients(0.001)),
    Case("zeros", inputs_of.gradients(0.0)),
    # Gradients as small as the eps that is added to the norm.
    Case("tiny", inputs_of.gradients(1e-7, max_norm=1e-6)),
    # As small as float16 holds with some digits: eps is a few percent of the norm.
    Case("small", inputs_of.gradients(2e-6, max_norm=4e-5)),
    # Gradients whose squares overflow float16.
    Case("large", inputs_of.gradients(600.0)),
    Case("infinite", inputs_of.gradients(1.0, infinite=True)),
)


ADAMW_CASES = (
    Case("three-steps", inputs_of.adamw()),
    # Weights that start at zero; gradients as small as eps; zero gradients, so that only the weight decay acts.
    Case("from-zero", inputs_of.adamw(start=0.0)),
    Case("tiny-gradients", inputs_of.adamw(start=0.01, size=1e-3, eps=1e-3)),
    Case("no-gradients", inputs_of.adamw(size=0.0, weight_decay=2.0)),
)


NEWTON_SCHULZ_CASES = tuple(
    Case(name, inputs_of.sized(build, *shape), size, math.prod(shape))
    for name, build, shape, size in (
        ("nano", inputs_of.matrices(), (3, 96, 96), "test"),
        ("wide", inputs_of.matrices(), (2, 24, 130), "test"),
        # Rounding moves a matrix's singular values as a whole: only over many of them a wrong factor shows.
        ("many", inputs_of.matrices(), (2048, 8, 12), "test"),
        ("many-three-steps", inputs_of.matrices(steps=3), (512, 12, 8), "test"),
        ("tall", inputs_of.matrices(steps=3), (2, 65, 16), "test"),
        ("one-step", inputs_of.matrices(steps=1), (4, 16, 40), "test"),
        ("one-row", inputs_of.matrices(), (5, 1, 33), "test"),
        # Rows of very different size, and a matrix of zeros.
        ("spread", inputs_of.matrices(spread=3.0), (3, 32, 48), "test"),
        # As small as the eps that is added to the norm.
        ("tiny", inputs_of.matrices(scale=1e-8, steps=1), (256, 4, 6), "test"),
        ("5120x5120", inputs_of.matrices(), (1, 5120, 5120), "bench"),
        ("13824x5120", inputs_of.matrices(), (1, 13824, 5120), "bench"),
    )
)


def _renamed(build: Build, suffix: str) -> tuple[Case, ...]:
    """The first three row cases with another `build`, and `suffix` in their names."""
    return tuple(replace(case, name=f"{case.name}-{suffix}") for case in row_cases(build)[:3])


def _no_gate(build: Build) -> tuple[Case, ...]:
    return _renamed(inputs_of.no_gate(build), "no-gate")


_HALF_ROPE = tuple(
    replace(case, name=f"{case.name}-half") for case in row_cases(inputs_of.rms_norm_rope(interleaved=False))
)
_GATED, _GATED_MODULATED = inputs_of.gate_residual_norm, inputs_of.gate_residual_norm_modulate

CASES: dict[str, tuple[Case, ...]] = {
    "rms_norm_rope": row_cases(inputs_of.rms_norm_rope(interleaved=True)) + _HALF_ROPE,
    "rms_norm": row_cases(inputs_of.rms_norm) + short_rows(inputs_of.rms_norm),
    "norm_modulate": row_cases(inputs_of.norm_modulate) + short_rows(inputs_of.norm_modulate),
    "layer_norm": row_cases(inputs_of.layer_norm) + short_rows(inputs_of.layer_norm),
    "gate_residual": row_cases(inputs_of.gate_residual) + _no_gate(inputs_of.gate_residual),
    "gate_residual_norm": row_cases(_GATED) + _no_gate(_GATED) + short_rows(_GATED, 384) + exact_sums(_GATED),
    "gate_residual_norm_modulate": row_cases(_GATED_MODULATED)
    + _no_gate(_GATED_MODULATED)
    + short_rows(_GATED_MODULATED)
    + exact_sums(_GATED_MODULATED),
    "bias_gelu": gelu_cases(),
    "linear_gelu": gemm_cases(),
    "lora_linear": gemm_cases(lora=True),
    "quantize_rows": row_cases(inputs_of.quantize_rows(factor=False))
    + _renamed(inputs_of.quantize_rows(factor=True), "factor"),
    "fp8_linear": fp8_cases(),
    "fp8_trained_linear": fp8_trained_cases(),
    "nf4_linear": quantised_cases(
        inputs_of.nf4_linear(True), inputs_of.nf4_linear(True, False), ("float32-scales", inputs_of.nf4_linear(False))
    ),
    # Sizes that are multiples of 8: see `mova_engine.ops.quantised_impl`.
    "int8_linear": quantised_cases(inputs_of.int8_linear(True), inputs_of.int8_linear(False), odd=(3, 7, 24, 40)),
    "gguf_linear": quantised_cases(
        inputs_of.gguf_linear("Q4_K"),
        inputs_of.gguf_linear("Q8_0", False),
        *((kind, inputs_of.gguf_linear(kind)) for kind in GGUF_KINDS),
        ("Q3_K-threes", inputs_of.gguf_threes),
    ),
    "attention": attention_cases(),
    "attention_lse": attention_cases(empty=True),
    "attention_backward": attention_cases(backward=True, empty=True),
    "merge_lse": MERGE_CASES,
    "adamw": ADAMW_CASES,
    "adamw_8bit": ADAMW_CASES,
    "newton_schulz": NEWTON_SCHULZ_CASES,
    "clip_grad_norm": CLIP_CASES,
}


def cases_of(operator: Operator | str) -> tuple[Case, ...]:
    """Return the cases of an operator of the table. Raises MovaError if it has none: pass own cases to `verify`
    then.
    """
    name = operator if isinstance(operator, str) else operator.name
    if name not in CASES:
        raise MovaError(f"operator '{name}' has no cases here: verify it on own `Case`s")
    return CASES[name]
