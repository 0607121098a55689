"""AdamW whose moments are held in 8 bits: 2.03 bytes a weight instead of 8.

Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2021 (arXiv 2110.02861): each block of 256 values has
its largest magnitude in float32, and each value, as a share of that, the nearest of 256 numbers of a *dynamic tree
code*. Of such a number's bits after the sign, leading zeros are a decimal exponent, and those after the first one a
linear fraction, so that shares from 1 down to 1e-7 are told apart. A step computes in float32, and then rounds.

Blocks lie within the rows of a weight, so that each row has its own: rows of a weight that processes share are stored,
divided and joined as those of the weight. Weights of fewer than 16 values a row keep float32 moments. Other than in
the paper, a second moment that is not zero is never rounded to zero, since steps divide by its root.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mova_engine.ops.moment_blocks import BLOCK, LEAST_ROW, SCALE
from mova_engine.ops.optimizer_impl import AdamWReference
from mova_engine.ops.reference import up
from mova_engine.ops.row_chunks import row_chunks

_DECADES = 7
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""The moments' names in the state, and whether they have a sign."""


@cache
def dynamic_code(signed: bool) -> Tensor:
    """The 256 numbers of the code, ascending, float64: -1 (excluded) or 0 to 1."""
    # 64 fractions in the first decade and half as many in each further one; without a sign twice as many.
    first = 64 if signed else 128
    decades = []
    for exponent in range(_DECADES):
        fractions = first >> exponent
        edges = torch.linspace(0.1, 1.0, fractions + 1, dtype=torch.float64)
        decades.append(10.0**-exponent * (edges[:-1] + edges[1:]) / 2)
    positive = torch.cat(decades)
    negative = -positive if signed else positive[:0]
    return torch.cat([negative, positive, torch.tensor([0.0, 1.0], dtype=torch.float64)]).sort().values


def quantise(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """x [r, n], float32 or float64 -> (codes uint8 [r, n], scales [r, blocks of a row] in x's dtype)."""
    blocks = _blocks(x)
    scale = blocks.abs().amax(-1)
    share = blocks / torch.where(scale > 0, scale, 1).unsqueeze(-1)
    code = dynamic_code(signed).to(x.device, x.dtype)
    index = torch.bucketize(share, (code[:-1] + code[1:]) / 2, out_int32=True)
    if not signed:
        index = torch.where(share > 0, index.clamp(min=1), index)
    return index.to(torch.uint8).flatten(1)[:, : x.shape[1]].contiguous(), scale


def dequantise(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """What `quantise` gave -> [r, n] in the scales' dtype."""
    code = dynamic_code(signed).to(scale.device, scale.dtype)
    values = code[_blocks(codes).int()] * scale.unsqueeze(-1)
    return values.flatten(1)[:, : codes.shape[1]]


def _blocks(x: Tensor) -> Tensor:
    """[r, n] -> [r, blocks, values of one], filled up with zeros."""
    size = min(BLOCK, x.shape[1])
    return torch.nn.functional.pad(x, (0, -x.shape[1] % size)).unflatten(1, (-1, size))


def row_length(p: Tensor) -> int:
    """Values in a row of a weight, of which this process may have none: what an index of dimension 0 selects."""
    return p.shape[1:].numel()


class AdamW8bitReference(AdamWReference):
    """`AdamWReference` with moments in 8 bits: dequantise, AdamW's formulas, quantise. In float32 at least."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                self.state[p] = state = self.state[p] or self._fresh(p)
                state["step"] += 1
                shape = len(p) if p.ndim else 1, row_length(p)
                moments = ((name, x) for name, x in state.items() if name != "step")
                parts = {name: x.view(shape) if x.shape == p.shape else x for name, x in moments}
                self._update(group, state["step"].item(), p.view(shape), p.grad.reshape(shape), parts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer's. torch would bring codes into the parameters' dtype."""
        codes = {
            index: {name: x for name, x in state.items() if name in MOMENTS and x.dtype == torch.uint8}
            for index, state in state_dict["state"].items()
        }
        rest = {i: {n: x for n, x in s.items() if n not in codes[i]} for i, s in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": rest})
        params = [p for group in self.param_groups for p in group["params"]]
        for index, found in codes.items():
            p = params[index]
            self.state[p].update({name: x.to(p.device, copy=True) for name, x in found.items()})

    @staticmethod
    def _fresh(p: Tensor) -> dict[str, Tensor]:
        state = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
        length = row_length(p)
        for name in MOMENTS:
            if length < LEAST_ROW:
                state[name] = torch.zeros_like(p, dtype=up(p[:0] if p.ndim else p).dtype)
                continue
            zeros = torch.zeros(1, length, dtype=up(p[:0]).dtype, device=p.device)
            codes, scale = quantise(zeros, MOMENTS[name])
            state[name] = codes.expand(len(p), -1).reshape(p.shape).contiguous()
            state[name + SCALE] = scale.expand(len(p), -1).contiguous()
        return state

    def _update(self, group: Mapping[str, Any], t: float, p: Tensor, grad: Tensor, state: Mapping[str, Tensor]) -> None:
        """One parameter as rows [r, n], by `AdamWReference`'s formulas; `state`: its moments as rows, changed in
        place.
        """
        b1, b2 = group["betas"]
        weight, g = up(p), up(grad)
        m, v = (_moment(state, name) for name in MOMENTS)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g.square()
        step = group["lr"] * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + group["eps"])
        p.copy_(weight * (1 - group["lr"] * group["weight_decay"]) - step)
        for name, moment in zip(MOMENTS, (m, v), strict=True):
            _keep(state, name, moment)


def _moment(state: Mapping[str, Tensor], name: str) -> Tensor:
    scale = state.get(name + SCALE)
    return state[name] if scale is None else dequantise(state[name], scale, MOMENTS[name])


def _keep(state: Mapping[str, Tensor], name: str, moment: Tensor) -> None:
    scale = state.get(name + SCALE)
    if scale is None:
        state[name].copy_(moment)
        return
    codes, scales = quantise(moment, MOMENTS[name])
    state[name].copy_(codes)
    scale.copy_(scales)


class AdamW8bit(AdamW8bitReference):
    """Rows by rows, so that float32 moments are those of a few rows, and with few passes over them."""

    def _update(self, group: Mapping[str, Any], t: float, p: Tensor, grad: Tensor, state: Mapping[str, Tensor]) -> None:
        b1, b2 = group["betas"]
        for rows in row_chunks(*p.shape):
            part, g = {name: x[rows] for name, x in state.items()}, grad[rows]
            m, v = (_moment(part, name) for name in MOMENTS)
            m = m.mul_(b1).add_(g, alpha=1 - b1)
            v = v.mul_(b2).addcmul_(g, g, value=1 - b2)
            for name, moment in zip(MOMENTS, (m, v), strict=True):
                _keep(part, name, moment)
            root = (v / (1 - b2**t)).sqrt_().add_(group["eps"])
            p[rows].mul_(1 - group["lr"] * group["weight_decay"])
            p[rows].addcdiv_(m, root, value=-group["lr"] / (1 - b1**t))
