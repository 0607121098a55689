"""The neutral form of an adapter: what every dialect is read into and written from.

An adapter changes weights of a model. A layer with weight W [out, in] takes a low-rank update (Hu et al., 2021)

    W' = W + alpha / rank * B A            A [rank, in], B [out, rank]

with DoRA (Liu et al., 2024) the rows of that W' are given new lengths, `magnitude` [out]. Other parameters, such as
biases, norms and modulations, take a full difference. A, B and alpha are kept apart and as they were stored, so that a
dialect that states all three loses nothing.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mova_engine.adapters.layer_names import (
    UNSAID,
    component_of,
    components_of_part,
    full_name,
    full_parameter,
    layer_of,
)
from mova_engine.config.adapter_spec import PARTS
from mova_engine.errors import MovaError

_SHOWN = 3
# The model that an adapter was made for, in a file's metadata: `checkpoints.fingerprint`.
BASE = "base"


class AlphaMissing(MovaError):
    """A file states no alpha, its dialect has no rule for it, and none was given."""


@dataclass(frozen=True)
class LowRank:
    """The update of one layer. a: [rank, in], b: [out, rank], any floating dtype; for a convolution with the kernel's
    axes at the end. magnitude: [out], of DoRA; None without.
    """

    a: Tensor
    b: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight that it changes."""
        return (self.b.shape[0], *self.a.shape[1:])

    @torch.no_grad()
    def update(self) -> Tensor:
        """alpha / rank * B A, float32, in the weight's shape."""
        product = self.b.flatten(1).float() @ self.a.flatten(1).float()
        return product.mul_(self.scale).view(self.weight_shape)

    @torch.no_grad()
    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The changed weight, float32. strength: 0 leaves the weight unchanged, 1 applies the whole update."""
        wide = weight.float()
        if self.magnitude is None:
            return torch.add(wide, self.update().to(wide.device), alpha=strength)
        changed = wide + self.update().to(wide.device)
        lengths = changed.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        factor = (self.magnitude.to(wide.device).float().flatten() / lengths).view(-1, *(1,) * (wide.ndim - 1))
        return torch.lerp(wide, changed * factor, strength)


@dataclass(frozen=True)
class Adapter:
    """An adapter in neutral form.

    layers: low-rank updates by full name of the layer, `video_dit.blocks.0.self_attn.q`. deltas: full differences by
    full name of the parameter, `video_dit.blocks.0.modulation`. metadata: of the file, as text. notes: values that were
    taken by a rule of the dialect because the file does not state them.
    """

    layers: Mapping[str, LowRank]
    deltas: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    dialect: str = ""
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Full names of all layers and parameters that it changes, in order."""
        return sorted([*self.layers, *self.deltas])

    @property
    def components(self) -> list[str]:
        """The components that it changes; with UNSAID if its file does not state one."""
        return sorted({component_of(name) for name in self.names})

    @property
    def content(self) -> str:
        """A digest, as hexadecimal digits, of all that it changes, whatever its file is called and its dialect is."""
        digest = hashlib.sha256()

        def add(name: str, tensor: Tensor | None) -> None:
            if tensor is not None:
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
                digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)

        for name, layer in sorted(self.layers.items()):
            digest.update(f"{name} {layer.alpha} ".encode())
            for each in ("a", "b", "magnitude"):
                add(each, getattr(layer, each))
        for name, delta in sorted(self.deltas.items()):
            add(name, delta)
        return digest.hexdigest()[:32]


def resolved(adapter: Adapter, part: str | None, source: object) -> Adapter:
    """Replace the component UNSAID by those of `part`, one of PARTS. Raises MovaError if a part is needed and not
    given, or given and not needed. source: names the file in errors.
    """
    if UNSAID not in adapter.components:
        if part is not None and not set(adapter.components) <= set(components_of_part(part)):
            held = ", ".join(adapter.components)
            raise MovaError(f"{source} says by itself what it adapts, {held}: leave out part {part}")
        return adapter
    if part is None:
        raise MovaError(
            f"{source} does not say which part of the model it adapts, and a file's name does not count: give --part "
            f"{', '.join(list(PARTS)[:-1])} or {list(PARTS)[-1]} (high and low: the video experts)"
        )
    components = components_of_part(part)
    layers: dict[str, LowRank] = {}
    deltas: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name in adapter.names:
        unsaid = component_of(name) == UNSAID
        for component in components if unsaid else ("",):
            whole = full_name if name in adapter.layers else full_parameter
            full = whole(layer_of(name), component) if unsaid else name
            if full is None:
                wrong.append(layer_of(name))
            elif name in adapter.layers:
                layers[full] = adapter.layers[name]
            else:
                deltas[full] = adapter.deltas[name]
    if wrong:
        raise MovaError(f"{source} adapts layers that part {part} does not have{listed(wrong, ':')}")
    return replace(adapter, layers=layers, deltas=deltas)


def check_shapes(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], source: object) -> None:
    """Raise MovaError if the model lacks a layer or parameter that the adapter changes, or has it in another size.
    shapes: of the model's parameters, by full name. source: names the file.
    """
    weights = {f"{name}.weight": pair for name, pair in adapter.layers.items()}
    unknown = [name.removesuffix(".weight") for name in (*weights, *adapter.deltas) if name not in shapes]
    if unknown:
        raise MovaError(f"{source} adapts layers that the model does not have{listed(sorted(unknown), ':')}")
    wrong: list[str] = []
    for name, pair in weights.items():
        if pair.weight_shape != shapes[name]:
            here = f"{name.removesuffix('.weight')} is {list(shapes[name])}"
            wrong.append(f"{here}, A {list(pair.a.shape)}, B {list(pair.b.shape)}")
    for name, delta in adapter.deltas.items():
        if tuple(delta.shape) != shapes[name]:
            wrong.append(f"{name} is {list(shapes[name])}, the difference {list(delta.shape)}")
    if wrong:
        raise MovaError(f"{source} was made for layers of another size{listed(wrong, ':')}")


def check_pair(name: str, pair: LowRank, source: object) -> None:
    """Raise MovaError for A and B whose shapes do not fit each other, or with values that are not finite."""
    sized = pair.a.ndim == pair.b.ndim and pair.a.ndim in (2, 3, 4, 5) and min((*pair.a.shape, *pair.b.shape)) > 0
    if not sized or pair.b.shape[1] != pair.rank or any(size != 1 for size in pair.b.shape[2:]):
        raise MovaError(
            f"{source}: A {list(pair.a.shape)} and B {list(pair.b.shape)} of {name} are no low-rank pair: "
            "[rank, in] and [out, rank] are wanted"
        )
    if pair.magnitude is not None and pair.magnitude.numel() != pair.b.shape[0]:
        raise MovaError(
            f"{source}: the magnitude of {name} is {list(pair.magnitude.shape)}, and its weight has {pair.b.shape[0]} "
            "rows: only DoRA over rows is known"
        )
    check_alpha(pair.alpha, f"{source}: alpha of {name}")
    for what, tensor in (("A", pair.a), ("B", pair.b), ("magnitude", pair.magnitude)):
        if tensor is not None:
            check_finite(f"{what} of {name}", tensor, source)


def check_finite(what: str, tensor: Tensor, source: object) -> None:
    """Raise MovaError for a tensor whose dtype is not float32, float16, bfloat16 or float64, or with values that are
    not finite.
    """
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise MovaError(f"{source}: {what} is {kind}; float32, float16, bfloat16 and float64 are read")
    # A value that is not finite makes the sum so, and a sum is ten times as fast. A sum can also overflow by itself.
    if not torch.isfinite(tensor.sum(dtype=torch.float32)) and not torch.isfinite(tensor).all():
        raise MovaError(f"{source}: {what} holds values that are not finite: the training that made it diverged")


def check_alpha(alpha: float, what: str) -> float:
    """Raise MovaError for an alpha that is not positive: 0 would disable an adapter, a negative one would invert it."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise MovaError(f"{what} must be a positive number, got {alpha:g}")
    return alpha


def listed(names: Iterable[str], lead: str) -> str:
    """`": a, b, c, ... (9 in all)"`, or "" for none."""
    names = list(names)
    if not names:
        return ""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{lead} {', '.join(names[:_SHOWN])}{more}"
