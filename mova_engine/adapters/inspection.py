"""Describes an adapter as text: `mova lora inspect`."""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Iterable
from itertools import groupby

import torch

from mova_engine.adapters.dialects import DIALECTS, get_dialect
from mova_engine.adapters.form import BASE, Adapter, LowRank
from mova_engine.adapters.layer_names import PART_OF, UNSAID, component_of, layer_of
from mova_engine.adapters.writing import held_by
from mova_engine.errors import MovaError, counted


def report(adapter: Adapter, source: object, layers: bool = False) -> str:
    """The description: dialect, base, a line for each component, what other dialects cannot hold. layers: also a line
    for each layer.
    """
    dialect = get_dialect(adapter.dialect)
    lines = [f"{source}: {dialect.name} ({dialect.about})"]
    base = adapter.metadata.get(BASE)
    lines.append(f"base         {base or 'the file does not say'}")
    others = {key: value for key, value in adapter.metadata.items() if key != BASE}
    lines += [f"metadata     {key} = {_short(value)}" for key, value in sorted(others.items())]
    lines += [f"note         {note}" for note in adapter.notes]
    for component, names in groupby(adapter.names, component_of):
        lines += _component(adapter, component, list(names), layers)
    lines += [f"not held by  {line}" for line in _not_held(adapter)]
    return "\n".join(lines)


def update_norm(pair: LowRank) -> float:
    """The Frobenius norm of alpha / rank * B A, without making the product: its square is the trace of B^T B A A^T."""
    a, b = pair.a.flatten(1).float(), pair.b.flatten(1).float()
    return pair.scale * math.sqrt(max(0.0, float(((b.T @ b).double() * (a @ a.T).double()).sum())))


def _component(adapter: Adapter, component: str, names: list[str], layers: bool) -> list[str]:
    part = "not said: give --part" if component == UNSAID else PART_OF[component]
    pairs = {name: adapter.layers[name] for name in names if name in adapter.layers}
    deltas = {name: adapter.deltas[name] for name in names if name in adapter.deltas}
    said: list[str] = []
    if pairs:
        norm = math.hypot(*map(update_norm, pairs.values()))
        dora = sum(pair.magnitude is not None for pair in pairs.values())
        said += [
            counted(len(pairs), "layer"),
            f"rank {_range(pair.rank for pair in pairs.values())}",
            f"alpha {_range(pair.alpha for pair in pairs.values())}",
            _dtypes(pair.a.dtype for pair in pairs.values()),
            f"norm of the update {norm:.4g}",
            *([f"DoRA in {dora}"] if dora else []),
        ]
    if deltas:
        norm = math.hypot(*(float(delta.double().norm()) for delta in deltas.values()))
        said.append(f"{counted(len(deltas), 'full difference')} of norm {norm:.4g}")
    lines = [f"{component:<17} ({part}): {', '.join(said)}"]
    if layers:
        for name in names:
            if name in pairs:
                pair = pairs[name]
                sizes = f"rank {pair.rank}, alpha {pair.alpha:g}, {list(pair.weight_shape)}"
                lines.append(f"  {layer_of(name)}: {sizes}, norm {update_norm(pair):.4g}")
            else:
                lines.append(f"  {layer_of(name)}: difference {list(deltas[name].shape)}")
    return lines


def _not_held(adapter: Adapter) -> list[str]:
    """What dialects cannot hold of an adapter, or only in a changed form: a line for each reason, with their names."""
    if UNSAID in adapter.components:
        return []
    dialects: dict[str, list[str]] = {}
    for name in DIALECTS:
        try:
            notes = held_by(adapter, get_dialect(name))[1]
        except MovaError:
            notes = [f"not held by {name}: anything of it"]
        for note in notes:
            who, _, what = note.removeprefix("not held by ").partition(": ")
            dialects.setdefault(what, []).append(who)
    return [f"{', '.join(names)}: {what}" for what, names in dialects.items()]


def _range(values: Iterable[float]) -> str:
    every = sorted(set(values))
    return f"{every[0]:g}" if len(every) == 1 else f"{every[0]:g} to {every[-1]:g}"


def _dtypes(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."
