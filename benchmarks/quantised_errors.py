"""What quantised weights cost in each kind of layer, at the widths of mova-360p: error of the weight and of the output.

    python -m benchmarks.quantised_errors --out benchmarks/results/quantised-errors.json

Weights and inputs are random, not the released ones: weights normal, in rows of log-normal sizes (deviation 0.3), and
the same with one value in a thousand ten times as large, between which trained weights lie; inputs normal in log-normal
channels (0.5), those of the down projection GELU of that. 256 rows of a layer's outputs, 256 tokens. Errors are root
mean squares over that of the float32 value; outputs are computed in bfloat16 by the operators that this machine binds.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.config.model import get_preset
from mova_engine.files.results import write_result
from mova_engine.models.weight_formats import FORMATS, WEIGHT, Held, WeightFormat, gguf_format
from mova_engine.ops import OpTable, bind

_ROWS, _TOKENS = 256, 256
# Kinds that the package gguf can write.
_GGUF = ("Q8_0", "Q5_0", "Q4_0")


def layers() -> dict[str, int]:
    """Inputs of each kind of layer, by a name that ends with the layer's."""
    model = get_preset("mova-360p")
    found = {}
    for name, tower in (("video", model.video), ("audio", model.audio)):
        found |= {f"{name} q, k, v, o, ffn.0": tower.dim, f"{name} ffn.2": tower.ffn_dim}
    return found


def drawn(name: str, inputs: int, outliers: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(weight [o, i], inputs [1, tokens, i]) in float32; see the module."""
    normal = [torch.randn(shape, generator=generator) for shape in ((_ROWS, inputs), (_ROWS, 1), (1, inputs))]
    weight = normal[0] * torch.exp(0.3 * normal[1]) * inputs**-0.5
    if outliers:
        weight = torch.where(torch.rand(weight.shape, generator=generator) < 1e-3, 10 * weight, weight)
    x = torch.randn(_TOKENS, inputs, generator=generator) * torch.exp(0.5 * normal[2])
    return weight, (torch.nn.functional.gelu(x, approximate="tanh") if name.endswith("ffn.2") else x).unsqueeze(0)


def held_in(weight: Tensor) -> Iterator[tuple[str, WeightFormat, Held]]:
    """The weight in each format."""
    import gguf

    for name, each in FORMATS.items():
        assert each.quantise is not None, "these are written"
        yield name, each, each.quantise(weight)
    for kind in _GGUF:
        blocks = gguf.quants.quantize(weight.numpy(), getattr(gguf.GGMLQuantizationType, kind))
        yield f"gguf {kind}", gguf_format(kind), {WEIGHT: torch.from_numpy(blocks)}


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def measured(name: str, inputs: int, outliers: bool, ops: OpTable) -> dict[str, dict[str, float]]:
    """Errors of a layer by format."""
    weight, x = drawn(name, inputs, outliers, torch.Generator().manual_seed(0))
    weight, x = weight.bfloat16().float(), x.bfloat16()
    expected = x.float() @ weight.T
    plain = torch.nn.functional.linear(x, weight.bfloat16())
    rows = {"bf16": {"weight": 0.0, "output": error(plain, expected)}}
    for kind, form, held in held_in(weight):
        output = form.product(ops, held, x, (None, None, None, 1.0))
        rows[kind] = {"weight": error(form.dequantise(held), weight), "output": error(output, expected)}
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    table = bind(get_backend("cpu"), training=False, dtypes=(torch.bfloat16,))
    found = {
        kind: {name: measured(name, inputs, outliers, table) for name, inputs in layers().items()}
        for kind, outliers in (("normal", False), ("with outliers", True))
    }
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    write_result(args.out, "quantised-errors", circumstances(get_backend("cpu")), inputs=layers(), errors=found)
