"""Merges adapters into the weights of a checkpoint folder, tensor by tensor.

The result is a new model folder that needs no adapters. Each weight keeps its dtype; in bfloat16 and float16 the sum is
rounded stochastically, so that even small updates are kept on average (`rounding`). One tensor at a time is in memory.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mova_engine.adapters.form import Adapter, LowRank, check_shapes
from mova_engine.adapters.reading import read_adapter, say_other_base
from mova_engine.adapters.rounding import rounded
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import save_mova
from mova_engine.checkpoints.locate import open_model
from mova_engine.config.adapter_spec import AdapterSpec, parse_adapter
from mova_engine.config.clip import ClipSettings
from mova_engine.config.model import COMPONENTS
from mova_engine.errors import MovaError, suggest
from mova_engine.files.folders import check_replaceable
from mova_engine.files.streamed import write_streamed
from mova_engine.files.tensors import read_stored, stored_tensors, take_stored_dtypes
from mova_engine.files.writable import check_writable
from mova_engine.models.mova import Mova
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
    stored = {name: stored_tensors(folder / name) for name in COMPONENTS if getattr(mova, name) is not None}
    shapes = {f"{part}.{name}": tensor.shape for part, every in stored.items() for name, tensor in every.items()}
    stack: list[tuple[Adapter, float]] = []
    several = [adapters] if isinstance(adapters, str | Path | AdapterSpec) else adapters
    for spec in (parse_adapter(str(each)) if isinstance(each, str | Path) else each for each in several):
        adapter = read_adapter(spec.path, alpha=spec.alpha, part=spec.part)
        check_shapes(adapter, shapes, spec.path)
        say_other_base(adapter, folder, spec.path, say)
        stack.append((adapter, spec.strength))
    wanted, report = None if dtype is None else DTYPES[dtype], MergeReport()
    for part, every in stored.items():
        take_stored_dtypes(getattr(mova, part), every, wanted)

    def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        part = path.parent.name

        def merged(name: str) -> Tensor:
            return _merged(read_stored(stored[part][name], name), f"{part}.{name}", stack, tensors[name].dtype, report)

        write_streamed(path, {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, merged)

    save_mova(mova, out, base=folder, write=write)
    return report


@torch.no_grad()
def _merged(
    weight: Tensor, name: str, stack: Sequence[tuple[Adapter, float]], dtype: torch.dtype, report: MergeReport
) -> Tensor:
    changes: list[tuple[LowRank | Tensor, float]] = []
    for adapter, strength in stack:
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer in adapter.layers:
            changes.append((adapter.layers[layer], strength))
        if name in adapter.deltas:
            changes.append((adapter.deltas[name], strength))
    if not changes:
        return weight.to(dtype)
    exact = weight.float()
    for change, strength in changes:
        low_rank = isinstance(change, LowRank)
        exact = change.applied(exact, strength) if low_rank else exact.add(change.float(), alpha=strength)
    result = rounded(exact, dtype, name)
    report.add(float((exact - weight.float()).norm()), float((result.float() - exact).norm()))
    return result
