"""Random inputs of the operators, by sizes: for trying an implementation on this machine, tests and benchmarks."""

from collections.abc import Callable
from typing import Any

import torch

from mova_engine.ops.gguf import GGUF_KINDS
from mova_engine.ops.int8 import quantise_int8
from mova_engine.ops.nf4 import quantise_nf4
from mova_engine.ops.reference import attention_lse_reference, quantize_rows_reference

# (generator, device, dtype) -> keyword arguments of an operator.
Make = Callable[[torch.Generator, torch.device, torch.dtype], dict[str, Any]]


_HOST = "cpu"


class Maker:
    """Draws tensors from one generator, where that is: on the CPU, so that every device gets the same values; for what
    is too large for that, on the device.
    """

    def __init__(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        self.generator, self.device, self.dtype = generator, device, dtype

    def __call__(
        self, *shape: int, scale: float = 1.0, offset: float = 0.0, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        place = self.generator.device
        # Not every device has float64.
        drawn = torch.float64 if place.type == _HOST else torch.float32
        x = torch.randn(shape, generator=self.generator, device=place, dtype=drawn) * scale + offset
        return x.to(self.device, dtype or self.dtype)

    def strided(self, *shape: int) -> torch.Tensor:
        """A tensor whose last axis is contiguous and whose rows are not adjacent."""
        return self(*shape[:-1], 2 * shape[-1])[..., : shape[-1]]

    @property
    def wide(self) -> torch.dtype:
        """The precision of tables, modulations and statistics."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


Build = Callable[[Maker, int, int, int, int], dict[str, Any]]


def sized(build: Callable[..., dict[str, Any]], *sizes: int) -> Make:
    """`build(maker, *sizes)` as a function of generator, device and dtype."""
    return lambda generator, device, dtype: build(Maker(generator, device, dtype), *sizes)


def norm_weight(make: Maker, d: int) -> torch.Tensor:
    return make(d, scale=0.2, offset=1.0)


def modulation(make: Maker, b: int, d: int) -> torch.Tensor:
    return make(b, d, scale=0.5, dtype=make.wide)


def rms_norm(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {"x": make(b, s, d), "weight": norm_weight(make, d), "eps": 1e-6}


def rms_norm_rope(interleaved: bool) -> Build:
    def build(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        angles = make(s, e // 2, scale=10.0, dtype=torch.float64)
        tables = {"cos": angles.cos().to(make.wide), "sin": angles.sin().to(make.wide)}
        return rms_norm(make, b, s, d, e) | tables | {"interleaved": interleaved}

    return build


def norm_modulate(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {
        "x": make(b, s, d, offset=0.5),
        "shift": modulation(make, b, d),
        "scale": modulation(make, b, d),
        "eps": 1e-6,
    }


def layer_norm(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {"x": make(b, s, d, offset=0.5), "weight": norm_weight(make, d), "bias": make(d, scale=0.2), "eps": 1e-6}


def gate_residual(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {"x": make(b, s, d), "y": make(b, s, d), "gate": modulation(make, b, d)}


def gate_residual_norm(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return gate_residual(make, b, s, d, e) | {k: v for k, v in layer_norm(make, b, s, d, e).items() if k != "x"}


def gate_residual_norm_modulate(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return gate_residual(make, b, s, d, e) | {k: v for k, v in norm_modulate(make, b, s, d, e).items() if k != "x"}


def bias_gelu(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
    return {"x": make(b, s, d, scale=2.0), "bias": make(d, scale=0.5)}


def quantize_rows(factor: bool) -> Build:
    """Rows of very different size, among them one of zeros; with `factor` also one scale for each channel."""

    def build(make: Maker, b: int, s: int, d: int, e: int) -> dict[str, Any]:
        x = make(b, s, d) * torch.logspace(-6, 2, s, device=make.device)[:, None].to(make.dtype)
        x[:, s // 2] *= 0 if s > 1 else 1
        return {"x": x, "factor": norm_weight(make, d) if factor else None}

    return build


def no_gate(build: Build) -> Build:
    """The same inputs with gate None: the plain residual after text cross-attention."""
    return lambda make, b, s, d, e: build(make, b, s, d, e) | {"gate": None}


def linear(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
    return {"x": make(b, s, i), "weight": make(o, i, scale=i**-0.5), "bias": make(o, scale=0.2)}


def lora_linear(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
    factors = {"lora_a": make(16, i, scale=i**-0.5), "lora_b": make(o, 16, scale=0.1), "scale": 2.0}
    return linear(make, b, s, i, o) | factors


def fp8_linear(adapter: bool) -> Build:
    # The quantised weight is an input, not a part of what is judged.
    def build(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        inputs = lora_linear(make, b, s, i, o)
        values, scale = quantize_rows_reference(inputs["weight"])
        inputs |= {"weight": values, "weight_scale": scale.squeeze(1)}
        return inputs if adapter else _without_adapter(inputs)

    return build


def _without_adapter(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"lora_a": None, "lora_b": None}


def _uneven(make: Maker, weight: torch.Tensor) -> torch.Tensor:
    """A weight whose rows are of very different size, with zeros where a block of a quantised form has nothing else."""
    sizes = torch.logspace(-3, 1, len(weight), dtype=torch.float64).to(weight.device, weight.dtype)
    weight = weight * sizes[:, None]
    weight[-1, :256] = 0
    return weight


def nf4_linear(double: bool, adapter: bool = True) -> Build:
    """double: scales in 8 bits."""

    def build(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        inputs = lora_linear(make, b, s, i, o)
        held = quantise_nf4(_uneven(make, inputs["weight"]) if not double else inputs["weight"], double)
        inputs = {"x": inputs.pop("x"), **held._asdict()} | {k: v for k, v in inputs.items() if k != "weight"}
        return inputs if adapter else _without_adapter(inputs)

    return build


def int8_linear(adapter: bool) -> Build:
    def build(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        inputs = lora_linear(make, b, s, i, o)
        values, scale = quantise_int8(_uneven(make, inputs["weight"]))
        inputs |= {"weight": values, "weight_scale": scale}
        return inputs if adapter else _without_adapter(inputs)

    return build


def gguf_linear(kind: str, adapter: bool = True) -> Build:
    """Blocks of random bytes with scales of a weight's size."""

    def build(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
        inputs, of = lora_linear(make, b, s, i, o), GGUF_KINDS[kind]
        place, size = make.generator.device, (o * i // of.values, of.size)
        blocks = torch.randint(256, size, generator=make.generator, device=place, dtype=torch.uint8).cpu()
        size = torch.tensor(1.0)
        for _ in range(2):
            for at in of.scales:
                scales = make(len(blocks), 1, dtype=torch.float64).cpu() * size
                blocks[:, at : at + 2] = scales.half().view(torch.uint8)
            # What the integers make by themselves says what the scales must be.
            size = i**-0.5 / of.decode(blocks).square().mean().sqrt()
        inputs |= {"weight": blocks.view(o, -1).to(make.device), "kind": kind}
        return inputs if adapter else _without_adapter(inputs)

    return build


def gguf_threes(make: Maker, b: int, s: int, i: int, o: int) -> dict[str, Any]:
    """Q3_K with integers of 3 alone. Of its integers, -4 to 3, which no minimum is taken from, only 3 and -3 are not
    powers of two: only there does a scale that is rounded by itself make a product that is rounded once more.
    """
    inputs = gguf_linear("Q3_K", adapter=False)(make, b, s, i, o)
    inputs["weight"].view(-1, GGUF_KINDS["Q3_K"].size)[:, :96] = 255  # every bit of the integers
    return inputs


def attention(
    make: Maker,
    b: int,
    s: int,
    n: int,
    h: int,
    e: int,
    *,
    q_scale: float = 1.0,
    q_offset: float = 0.0,
    k_offset: float = 0.0,
    v_offset: float = 0.0,
) -> dict[str, Any]:
    """q [b, s, h, e], k and v [b, n, h, e]."""
    q, k = make(b, s, h, e, scale=q_scale, offset=q_offset), make(b, n, h, e, offset=k_offset)
    return {"q": q, "k": k, "v": make(b, n, h, e, offset=v_offset)}


def attention_backward(make: Maker, b: int, s: int, n: int, h: int, e: int, **scores: float) -> dict[str, Any]:
    # The shard's own keys are the first half of all keys: out and lse are those of the whole.
    q, k, v = attention(make, b, s, 2 * n, h, e, **scores).values()
    out, lse = attention_lse_reference(q.double(), k.double(), v.double())
    shard = {"q": q, "k": k[:, :n], "v": v[:, :n]}
    return {"dout": make(b, s, h, e), **shard, "out": out.to(q.dtype), "lse": lse.to(make.wide)}


def merge_lse(
    shards: int,
    scale: float = 3.0,
    offset: float = 0.0,
    empty: bool = False,
    sizes: tuple[int, int, int, int] = (2, 11, 2, 64),
) -> Make:
    """sizes: (batch, tokens, heads, head dim)."""
    b, n, h, e = sizes

    def make_case(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        make = Maker(generator, device, dtype)
        outs = make(shards, b, n, h, e, offset=1.0)
        lses = make(shards, b, h, n, scale=scale, offset=offset, dtype=make.wide)
        if empty:
            outs[1], lses[1] = torch.nan, -torch.inf
        return {"outs": outs, "lses": lses}

    return make_case


Shapes = tuple[tuple[int, ...], ...]
_SHAPES: Shapes = ((33, 17), (101,), (1, 6, 96))


def gradients(scale: float, max_norm: float = 1.0, infinite: bool = False, shapes: Shapes = _SHAPES) -> Make:
    def make_case(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        make = Maker(generator, device, dtype)
        grads = [make(*shape, scale=scale) for shape in shapes]
        if infinite:
            grads[0][3, 4] = torch.inf
        return {"grads": grads, "max_norm": max_norm}

    return make_case


def adamw(
    start: float = 1.0, size: float = 0.1, eps: float = 1e-8, weight_decay: float = 0.1, shapes: Shapes = _SHAPES
) -> Make:
    def make_case(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        make = Maker(generator, device, dtype)
        return {
            "params": [make(*shape, scale=start) for shape in shapes],
            "grads": [[make(*shape, scale=size) for shape in shapes] for _ in range(3)],
            "options": {"lr": 1e-2, "betas": (0.9, 0.98), "eps": eps, "weight_decay": weight_decay},
        }

    return make_case


def matrices(
    scale: float = 1.0, steps: int = 5, spread: float = 0.0
) -> Callable[[Maker, int, int, int], dict[str, Any]]:
    """For Newton-Schulz: n matrices [r, c]. scale: of their elements. spread: decades between the largest rows and the
    smallest; the last of several matrices is zero then.
    """

    def build(make: Maker, n: int, r: int, c: int) -> dict[str, Any]:
        sizes = torch.logspace(0, -spread, r, dtype=torch.float64)[:, None]
        x = make(n, r, c, scale=scale, dtype=torch.float64).cpu() * sizes
        if spread and n > 1:
            x[-1] = 0
        return {"x": x.to(make.device, make.dtype), "steps": steps}

    return build
