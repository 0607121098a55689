"""A model folder written with quantised weights: `mova quantise`.

One layer at a time is in memory. Each is read, quantised, compared with what it was and written; the folder appears
when it is complete.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false

import math
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mova_engine import __version__
from mova_engine.backend import get_backend
from mova_engine.checkpoints.fingerprint import fingerprint
from mova_engine.checkpoints.locate import open_model
from mova_engine.checkpoints.quantised_files import StoredComponent, open_component
from mova_engine.checkpoints.quantised_writing import ComponentWriter, copied_bytes, quantisation_config, rewrite
from mova_engine.config.clip import ClipSettings
from mova_engine.config.model import COMPONENTS
from mova_engine.errors import MovaError, suggest
from mova_engine.files.folders import check_replaceable, nearest_folder, replaced_folder
from mova_engine.files.tensors import read_stored
from mova_engine.files.writable import check_writable
from mova_engine.memory.quantised import left_plain, linear_names, quantisable
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import Held, WeightFormat, known_format
from mova_engine.ops import bind

# Told how many of how many weights are done.
Progress = Callable[[int, int], object]
# Bytes of headers, configurations and checksums, beside the tensors.
_BESIDE = 16 << 20


@dataclass
class LayerError:
    """What quantising lost in all layers of a kind. weights: how many; squares: the sum of their squares; lost: that of
    the errors'. largest: error of one weight, of `worst`.
    """

    layers: int = 0
    weights: int = 0
    squares: float = 0.0
    lost: float = 0.0
    largest: float = 0.0
    worst: str = ""

    @property
    def relative(self) -> float:
        """The errors' root mean square over that of the weights."""
        return math.sqrt(self.lost / self.squares) if self.squares else 0.0

    def add(self, name: str, weight: Tensor, found: Tensor) -> None:
        """Count a layer by its weight and what became of it."""
        error = found - weight.float()
        largest = float(error.abs().amax())
        self.layers, self.weights = self.layers + 1, self.weights + weight.numel()
        self.squares += float(weight.float().square().sum(dtype=torch.float64))
        self.lost += float(error.square().sum(dtype=torch.float64))
        if largest >= self.largest:
            self.largest, self.worst = largest, name


@dataclass
class QuantiseReport:
    """What was written. before, after: bytes of the components' weights. errors: by component and kind of layer, as
    "video_dit.blocks.*.ffn.0". plain: layers of towers and bridge that did not fit the format.
    """

    weights: str
    before: int = 0
    after: int = 0
    errors: dict[str, LayerError] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)

    def add(self, name: str, weight: Tensor, found: Tensor) -> None:
        """Count a layer, by its full name."""
        self.errors.setdefault(re.sub(r"\.\d+\.", ".*.", name), LayerError()).add(name, weight, found)

    def rows(self) -> list[tuple[str, ...]]:
        """A table: a row for each kind of layer, after a heading."""
        rows = [("layer", "layers", "weights", "relative RMS error", "largest error", "in")]
        for kind, error in self.errors.items():
            size = f"{error.weights / 1e6:.2f} M"
            row = (str(error.layers), size, f"{error.relative:.3%}", f"{error.largest:.3g}", error.worst)
            rows.append((kind, *row))
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row[:5], widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([*lines, f"weights {self.before / 1e9:.3f} GB -> {self.after / 1e9:.3f} GB"])


def quantise_folder(
    checkpoint: str | Path,
    out: str | Path,
    weights: str,
    components: Collection[str] = COMPONENTS,
    clip: ClipSettings | None = None,
    progress: Progress = lambda done, total: None,
) -> QuantiseReport:
    """Write to `out` the model of `checkpoint` with the layers of `components` in a format: "nf4", "int8" or "fp8".

    checkpoint: a model folder or a training run. out: a new or empty folder. clip: the clips' size, where the folder
    states none. Raises MovaError for folders that do not fit or are quantised already, for weights that are not finite,
    and where the disk has no room; then nothing is written.
    """
    weight_format, out = known_format(weights), Path(out)
    check_writable(out.absolute().parent, "--out")
    check_replaceable(out)
    folder, config = open_model(checkpoint, clip or ClipSettings())
    mova = Mova(config, bind(get_backend("cpu")), "meta").requires_grad_(False)
    present = [name for name in COMPONENTS if getattr(mova, name) is not None]
    for name in components:
        if name not in COMPONENTS:
            raise MovaError(f"unknown component '{name}'.{suggest(name, COMPONENTS)} Known: {', '.join(COMPONENTS)}")
    chosen = [name for name in present if name in components]
    if not chosen:
        raise MovaError(f"{folder} has none of {', '.join(components)}; it has {', '.join(present)}")
    report = QuantiseReport(weights)
    writers: dict[str, tuple[ComponentWriter, Mapping[str, Any]]] = {}
    for name in chosen:
        stored, module = open_component(folder / name), getattr(mova, name)
        if stored.quantised:
            raise MovaError(
                f"{stored.folder} is in {', '.join(stored.formats)} already: name the folder that it was made of"
            )
        stored.fit(module)
        layers = quantisable(module, weight_format)
        report.plain += [f"{name}.{each}" for each in left_plain(module, weight_format)]
        counted = _Counted(stored, name, weight_format, report)
        writer = ComponentWriter(stored, dict.fromkeys(layers, weight_format), counted.held, counted.checked)
        plain = [each for each in linear_names(module) if each not in layers]
        writers[name] = writer, quantisation_config(weight_format, plain)
        report.before += sum(each.bytes for each in stored.plain.values())
        report.after += writer.bytes
    total = sum(len(writer.formats) for writer, _ in writers.values())
    if not total:
        raise MovaError(f"no layer of {folder} fits {weights}, whose sizes are multiples of {weight_format.multiples}")
    _check_room(out, report.after + copied_bytes(folder, out, chosen))
    source = fingerprint(folder)
    state = _Steps(progress, total)
    for writer, _ in writers.values():
        writer.held = state.counting(writer.held)

    def facts() -> dict[str, Any]:
        errors = {kind: {**asdict(x), "relative": x.relative} for kind, x in report.errors.items()}
        made = {"weights": weights, "components": chosen, "source": folder.name, "source_fingerprint": source}
        return {**made, "engine": __version__, "bytes": report.after, "errors": errors, "plain": report.plain}

    with replaced_folder(out) as fresh:
        rewrite(folder, fresh, config, writers, facts)
    return report


class _Counted:
    """Quantises the layers of a component and counts what is lost."""

    def __init__(self, stored: StoredComponent, name: str, weight_format: WeightFormat, report: QuantiseReport) -> None:
        self.stored, self.name, self.format, self.report = stored, name, weight_format, report

    @torch.no_grad()
    def held(self, layer: str) -> Held:
        key = f"{layer}.weight"
        weight = self.checked(key, read_stored(self.stored.plain[key], key))
        assert self.format.quantise is not None, "formats that are asked for can be written"
        held = self.format.quantise(weight)
        self.report.add(f"{self.name}.{layer}", weight, self.format.dequantise(held))
        return held

    def checked(self, name: str, value: Tensor) -> Tensor:
        if not bool(torch.isfinite(value).all()):
            raise MovaError(f"{self.stored.folder}: {name} holds values that are not finite; nothing is quantised")
        return value


class _Steps:
    """Tells how many layers are done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def counting(self, held: Callable[[str], Held]) -> Callable[[str], Held]:
        def counted(layer: str) -> Held:
            found = held(layer)
            self._done += 1
            self._progress(self._done, self._total)
            return found

        return counted


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(nearest_folder(out)).free
    if free < needed + _BESIDE:
        raise MovaError(
            f"{out} would take {(needed + _BESIDE) / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free: make "
            "room, or give another --out"
        )
