"""Which layers of a run multiply in fp8: all that fit, as long as their results stay within the slack.

A layer is compared before it is first used: in the first step that runs it, it is computed in the run's dtype, and
beside it in fp8, on the step's own activations and gradients. One that is off by more than `fp8.slack` stays in the
run's dtype for good. Every `fp8.check_every` steps all layers are compared anew. What is decided is part of checkpoints
(a run that goes on takes the same steps) and stands in the run's folder.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mova_engine.config.fp8 import FP8_TRAINED
from mova_engine.config.train import TrainConfig
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError, counted
from mova_engine.files.written import Written
from mova_engine.memory.quantised import check_fits, left_plain, quantisable
from mova_engine.models.fp8_products import COMPARED, NOT_MEASURED, Fp8Products
from mova_engine.models.layers import Linear
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import FP8
from mova_engine.ops import REFERENCE, OpTable

# The record in the run's folder.
RECORD = "fp8.json"
# Layers that are named one by one on the console; the record has all.
_SHOWN = 20


def check_products(config: TrainConfig, model: Mova, ops: OpTable) -> None:
    """MovaError where the device has no fp8 products, or no layer takes them by its sizes."""
    if not config.fp8.used:
        return
    chosen = next(choice for choice in ops.choices if choice.operator == FP8_TRAINED)
    if config.fp8.products == "device" and chosen.implementation == REFERENCE:
        reasons = "; ".join(f"{name} {reason}" for name, reason in chosen.refused)
        raise MovaError(
            f"fp8.products device: this {ops.device} has no fp8 products ({reasons}): leave it out, or give "
            "--fp8.products emulated, which shows what they do to a training, slowly"
        )
    check_fits(model, FP8, f"fp8.products {config.fp8.products}")


def use_fp8(config: TrainConfig, model: Mova, ops: OpTable) -> None:
    """Let the layers of a model that fit multiply in fp8, as the settings say. MovaError as `check_products`."""
    check_products(config, model, ops)
    for name in quantisable(model, FP8) if config.fp8.used else ():
        _layer(model, name).fp8 = Fp8Products()


def _layer(model: Mova, name: str) -> Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, Linear), "other layers do not multiply in fp8"
    return layer


class Fp8Watch:
    """Compares the layers of a run that multiply in fp8; all processes have one and decide alike.

    found: of each layer that was compared its last step, from 1, and the deviations of `COMPARED`. kept: layers that
    stay in the run's dtype.
    """

    def __init__(self, config: TrainConfig, model: Mova, processes: Processes) -> None:
        self.settings, self.dtype, self.processes = config.fp8, config.dtype, processes
        names = quantisable(model, FP8) if self.settings.used else []
        self.layers = {name: _layer(model, name) for name in names}
        self.unfit = left_plain(model, FP8) if self.settings.used else []
        self.found: dict[str, tuple[int, tuple[float, ...]]] = {}
        self.kept: set[str] = set()
        self._written: Written | None = None

    def words(self) -> str:
        """What is printed before the first step of a run with fp8."""
        left = f"; {len(self.unfit)} whose sizes do not fit stay in {self.dtype}" if self.unfit else ""
        how = ", emulated" if self.settings.products == "emulated" else ""
        kept = f"; {len(self.kept)} were off by more than fp8.slack before" if self.kept else ""
        return f"products in fp8{how}: {counted(len(self.layers) - len(self.kept), 'layer')}{left}{kept}"

    def open_record(self, written: Written | None) -> None:
        """Keep the record in a run's folder from now on; None: in a process that writes nothing."""
        self._written = written if self.layers else None
        self._write()

    def begin(self, step: int) -> None:
        """Before optimizer step number `step`, from 0."""
        every = self.settings.check_every
        due = every > 0 and step % every == 0
        for name, layer in self.layers.items():
            if layer.fp8 is not None:
                layer.fp8.comparing = due or name not in self.found
                layer.fp8.forget()

    def end(self, step: int, taken: bool) -> list[str]:
        """After step number `step`, counted from 1: what to say of what was compared. taken: whether the step was
        finite; of others nothing is taken.
        """
        # A step runs the same components in all processes: one video expert, the bridge or not.
        found = {name: x.fp8.deviations for name, x in self.layers.items() if x.fp8 is not None and x.fp8.comparing}
        ran = {name: deviations for name, deviations in found.items() if deviations is not None}
        if not ran or not taken:
            return []
        compared: dict[str, tuple[float, ...]] = {}
        for name, deviations in zip(ran, self._everywhere(ran.values()), strict=True):
            # What gave nothing but zeros, such as the gradient behind weights that are zero, is compared again.
            if NOT_MEASURED not in deviations or max(deviations) > self.settings.slack:
                compared[name] = deviations
        self.found |= {name: (step, deviations) for name, deviations in compared.items()}
        off = {name: each for name, each in compared.items() if not max(each) <= self.settings.slack}
        for name in off:
            self.layers[name].fp8 = None
        self.kept |= off.keys()
        if not compared:
            return []
        self._write()
        return self._lines(step, compared, off)

    def _everywhere(self, deviations: Iterable[Tensor]) -> list[tuple[float, ...]]:
        """Of each layer the largest deviations of all processes."""
        gathered = self.processes.all_gather_object(torch.stack(list(deviations)).tolist())
        return [tuple(max(each) for each in zip(*rows, strict=True)) for rows in zip(*gathered, strict=True)]

    def _lines(self, step: int, compared: Mapping[str, tuple[float, ...]], off: Mapping[str, Any]) -> list[str]:
        worst = [max(each) for each in zip(*compared.values(), strict=True)]
        parts = ", ".join(f"{what} {_percent(x)}" for what, x in zip(COMPARED, worst, strict=True))
        lines = [f"fp8 compared at step {step}: {counted(len(compared), 'layer')}, off by at most {parts}"]
        for name, deviations in list(off.items())[:_SHOWN]:
            told = f"{_percent(max(deviations))} ({COMPARED[deviations.index(max(deviations))]})"
            lines.append(f"fp8: {name} is off by {told}, more than {_percent(self.settings.slack)}: {self.dtype} again")
        if len(off) > _SHOWN:
            lines.append(f"fp8: and {len(off) - _SHOWN} more, which {RECORD} names")
        if self.layers and len(self.kept) == len(self.layers):
            lines.append("warning: no layer multiplies in fp8 any more")
        return lines

    def _write(self) -> None:
        if self._written is None:
            return
        layers = {
            name: {"in": self.dtype if name in self.kept else "fp8", "step": step, **_by_name(off)}
            for name, (step, off) in sorted(self.found.items())
        }
        facts = {
            "products": self.settings.products,
            "slack": self.settings.slack,
            "not compared yet": sorted(self.layers.keys() - self.found.keys()),
            "sizes do not fit": self.unfit,
            "layers": layers,
        }
        self._written.write(
            RECORD, (json.dumps(facts, indent=1) + "\n").encode(), "move it away, or give another --out"
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for `load_state_dict`."""
        found = {name: {"step": step, **_by_name(off)} for name, (step, off) in self.found.items()}
        return {"found": found, "kept": sorted(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the decisions of a checkpoint, as far as the run multiplies in fp8."""
        for name, entry in state.get("found", {}).items():
            if name in self.layers:
                off = (math.inf if entry[what] is None else entry[what] for what in COMPARED)
                self.found[name] = entry["step"], tuple(off)
        self.kept = self.layers.keys() & set(state.get("kept", ()))
        for name in self.kept:
            self.layers[name].fp8 = None


def _by_name(deviations: tuple[float, ...]) -> dict[str, float | None]:
    """For JSON, which has no infinite numbers: None in their place."""
    finite = (x if math.isfinite(x) else None for x in deviations)
    return dict(zip(COMPARED, finite, strict=True))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
