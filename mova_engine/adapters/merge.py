"""Merges adapters into the weights of a checkpoint folder, tensor by tensor.

The result is a new model folder that needs no adapters. Each weight keeps its dtype; in bfloat16 and float16 the sum is
rounded stochastically, so that even small updates are kept on average (`rounding`). A quantised weight is dequantised,
changed in float32 and quantised again in its format, which loses changes below the spacing of its values: the report
says how much. One tensor at a time is in memory.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mova_engine.adapters.form import Adapter, LowRank, check_shapes
from mova_engine.adapters.reading import read_adapter, say_other_base
from mova_engine.adapters.rounding import rounded
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import save_mova
from mova_engine.checkpoints.locate import open_model
from mova_engine.checkpoints.quantised_files import StoredComponent, open_component
from mova_engine.checkpoints.quantised_writing import ComponentWriter, rewrite
from mova_engine.config.adapter_spec import AdapterSpec, parse_adapter
from mova_engine.config.clip import ClipSettings
from mova_engine.config.model import COMPONENTS, MovaConfig
from mova_engine.errors import MovaError, suggest
from mova_engine.files.folders import check_replaceable, replaced_folder
from mova_engine.files.streamed import write_streamed
from mova_engine.files.tensors import read_stored, take_stored_dtypes
from mova_engine.files.writable import check_writable
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import Held
from mova_engine.ops import DTYPES, bind


@dataclass
class MergeReport:
    """changed: number of parameters. update: norm of all that was added. error: norm of the rounding error of that."""

    changed: int = 0
    update: float = 0.0
    error: float = 0.0

    def add(self, update: float, error: float) -> None:
        """Count one parameter."""
        self.changed += 1
        self.update = math.hypot(self.update, update)
        self.error = math.hypot(self.error, error)

    def __str__(self) -> str:
        share = f" ({self.error / self.update:.1%})" if self.update else ""
        return f"the update's norm is {self.update:.4g}, that of its rounding error {self.error:.4g}{share}"


def merge_folder(
    checkpoint: str | Path,
    adapters: str | Path | AdapterSpec | Sequence[AdapterSpec],
    out: str | Path,
    clip: ClipSettings | None = None,
    dtype: str | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> MergeReport:
    """Write to `out` the model of `checkpoint` with adapters merged in, one after the other.

    checkpoint: a model folder or a training run. adapters: one, as a path or a value of `parse_adapter`, or several.
    out: a new or empty folder. clip: the clips' size, if the folder does not state it. dtype: "float32" or "bfloat16"
    for all weights; None: each as it is stored. say: called with a message if an adapter was made for another model.
    Raises MovaError for folders or files that do not fit; then nothing is written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise MovaError(f"unknown dtype '{dtype}'.{suggest(dtype, DTYPES)} Known: {', '.join(DTYPES)}")
    out = Path(out)
    check_writable(out.absolute().parent, "out")
    check_replaceable(out)
    folder, config = open_model(checkpoint, clip or ClipSettings())
    mova = Mova(config, bind(get_backend("cpu")), "meta")
    present = [name for name in COMPONENTS if getattr(mova, name) is not None]
    parts = {name: open_component(folder / name) for name in present}
    stored = {name: part.plain for name, part in parts.items()}
    shapes = {f"{part}.{name}": tensor.shape for part, every in stored.items() for name, tensor in every.items()}
    for part, each in parts.items():
        shapes |= {f"{part}.{layer}.weight": weight.shape for layer, weight in each.quantised.items()}
    stack: list[tuple[Adapter, float]] = []
    several = [adapters] if isinstance(adapters, str | Path | AdapterSpec) else adapters
    for spec in (parse_adapter(str(each)) if isinstance(each, str | Path) else each for each in several):
        adapter = read_adapter(spec.path, alpha=spec.alpha, part=spec.part)
        check_shapes(adapter, shapes, spec.path)
        say_other_base(adapter, folder, spec.path, say)
        stack.append((adapter, spec.strength))
    wanted, report = None if dtype is None else DTYPES[dtype], MergeReport()
    if any(part.quantised for part in parts.values()):
        if dtype is not None:
            raise MovaError(f"{folder} holds quantised weights, which keep their formats: leave --dtype out")
        for name, part in parts.items():
            part.fit(getattr(mova, name))
        _merge_quantised(folder, out, config, parts, stack, report)
        return report
    for part, every in stored.items():
        take_stored_dtypes(getattr(mova, part), every, wanted)

    def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        part = path.parent.name

        def merged(name: str) -> Tensor:
            return _merged(read_stored(stored[part][name], name), f"{part}.{name}", stack, tensors[name].dtype, report)

        write_streamed(path, {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, merged)

    save_mova(mova, out, base=folder, write=write)
    return report


def _merge_quantised(
    folder: Path,
    out: Path,
    config: MovaConfig,
    parts: Mapping[str, StoredComponent],
    stack: Sequence[tuple[Adapter, float]],
    report: MergeReport,
) -> None:
    """`merge_folder` where weights are quantised: all that is not changed keeps its bytes."""
    writers: dict[str, tuple[ComponentWriter, Mapping[str, Any]]] = {}
    for name, part in parts.items():
        lacking = sorted(each.format.name for each in part.quantised.values() if each.format.quantise is None)
        if lacking:
            raise MovaError(
                f"{part.folder} is in {lacking[0]}, which is not written: merge into the folder it was made of"
            )
        formats = {layer: weight.format for layer, weight in part.quantised.items()}

        @torch.no_grad()
        def held(layer: str, name: str = name, part: StoredComponent = part) -> Held:
            weight_format, found = part.quantised[layer].format, part.held(layer)
            key = f"{name}.{layer}.weight"
            changes = _changes(key, stack)
            if not changes:
                return found
            before = weight_format.dequantise(found)
            exact = _changed(before, changes)
            assert weight_format.quantise is not None, "read only formats were refused"
            after = weight_format.quantise(exact)
            report.add(float((exact - before).norm()), float((weight_format.dequantise(after) - exact).norm()))
            return after

        def plain(key: str, value: Tensor, name: str = name) -> Tensor:
            return _merged(value, f"{name}.{key}", stack, value.dtype, report)

        writers[name] = ComponentWriter(part, formats, held, plain), {}
    with replaced_folder(out) as fresh:
        rewrite(folder, fresh, config, writers)


@torch.no_grad()
def _merged(
    weight: Tensor, name: str, stack: Sequence[tuple[Adapter, float]], dtype: torch.dtype, report: MergeReport
) -> Tensor:
    changes = _changes(name, stack)
    if not changes:
        return weight.to(dtype)
    exact = _changed(weight, changes)
    result = rounded(exact, dtype, name)
    report.add(float((exact - weight.float()).norm()), float((result.float() - exact).norm()))
    return result


def _changes(name: str, stack: Sequence[tuple[Adapter, float]]) -> list[tuple[LowRank | Tensor, float]]:
    """What adapters change in a parameter, each with its strength."""
    changes: list[tuple[LowRank | Tensor, float]] = []
    for adapter, strength in stack:
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer in adapter.layers:
            changes.append((adapter.layers[layer], strength))
        if name in adapter.deltas:
            changes.append((adapter.deltas[name], strength))
    return changes


def _changed(weight: Tensor, changes: Sequence[tuple[LowRank | Tensor, float]]) -> Tensor:
    """The sum, in float32."""
    exact = weight.float()
    for change, strength in changes:
        low_rank = isinstance(change, LowRank)
        exact = change.applied(exact, strength) if low_rank else exact.add(change.float(), alpha=strength)
    return exact
