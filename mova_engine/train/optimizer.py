"""Parameter groups with a learning rate for towers and bridge, and the learning rate's course."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mova_engine.config.optim_settings import OptimSettings
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.fsdp import LocalShard
from mova_engine.ops import DTYPES, OpTable
from mova_engine.train.muon import Joined, Muon, is_hidden_matrix

BRIDGE = "dual_tower_bridge"


class NamedWeight(NamedTuple):
    """A trained tensor (float32) and its dotted name, which begins with its component's. Where processes share the
    weights, these are this one's rows of it.
    """

    name: str
    piece: LocalShard

    @property
    def tensor(self) -> Tensor:
        """What this process holds of it: what an optimizer updates."""
        return self.piece.tensor

    @property
    def component(self) -> str:
        """video_dit, video_dit_2, audio_dit or dual_tower_bridge."""
        return self.name.split(".")[0]


def build_optimizer(
    weights: list[NamedWeight],
    settings: OptimSettings,
    ops: OpTable,
    dtype: torch.dtype = torch.float32,
    group: Group | None = None,
) -> torch.optim.Optimizer:
    """The optimizer that `settings` names, over one parameter group per component, and one more for the B of its
    adapters where these have a rate of their own; with Muon, those of AdamW's weights are apart too. Each group
    remembers its name and its peak learning rate. dtype: of the run, in which Muon multiplies unless it is told
    otherwise. group: of the ranks that share the weights' rows; None: this process has all.
    """
    adamw = ops.adamw_8bit if settings.moments == "8bit" else ops.adamw
    common = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        return adamw(_groups(weights, settings), betas=settings.betas, eps=settings.eps, **common)
    matrices = [weight for weight in weights if is_hidden_matrix(weight.name, weight.piece.shape)]
    rest = [weight for weight in weights if not is_hidden_matrix(weight.name, weight.piece.shape)]
    muon = Muon(
        _groups(matrices, settings),
        [weight.piece for weight in matrices],
        momentum=settings.momentum,
        every=settings.muon_every,
        orthogonalise=partial(ops.newton_schulz, steps=settings.newton_schulz_steps),
        dtype=dtype if settings.newton_schulz_dtype == "run" else DTYPES[settings.newton_schulz_dtype],
        group=group or Group(),
        **common,
    )
    if not rest:
        return muon
    return Joined(muon, adamw(_groups(rest, settings, "/adamw"), betas=settings.betas, eps=settings.eps, **common))


def _groups(weights: list[NamedWeight], settings: OptimSettings, ending: str = "") -> list[dict[str, Any]]:
    """Parameter groups; ending: of their names."""
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for weight in weights:
        apart = settings.lora_plus != 1 and ".lora_B." in weight.name
        groups.setdefault((weight.component, apart), []).append(weight.tensor)
    return [
        {
            "params": tensors,
            "name": (f"{name}/lora_B" if apart else name) + ending,
            "peak_lr": peak_lr(name, settings) * (settings.lora_plus if apart else 1.0),
        }
        for (name, apart), tensors in groups.items()
    ]


def peak_lr(component: str, settings: OptimSettings) -> float:
    """The greatest learning rate of a component's weights."""
    return settings.bridge_lr if component == BRIDGE and settings.bridge_lr is not None else settings.lr


def lr_factor(step: int, steps: int, settings: OptimSettings) -> float:
    """The learning rate of step `step` (from 0) of `steps`, as a share of the peak.

    Linear warm-up to 1, constant until the share `decay_start` of all steps, then half a cosine down to `final_lr`.
    """
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    start = max(settings.decay_start * steps, settings.warmup)
    if step < start or steps <= start:
        return warm
    progress = (step - start) / (steps - start)
    return warm * (settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Give every group its peak learning rate times `factor`; returns them by component."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def optimizer_tensors(optimizer: torch.optim.Optimizer, weights: list[NamedWeight]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, `weight name:state name`, for a safetensors file."""
    tensors = {}
    for weight in weights:
        for key, value in optimizer.state.get(weight.tensor, {}).items():
            tensors[f"{weight.name}:{key}"] = value
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, weights: list[NamedWeight], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` gave. Weights that had no state yet (an expert not yet drawn) get none."""
    index = {id(t): i for i, t in enumerate(t for group in optimizer.param_groups for t in group["params"])}
    number = {weight.name: index[id(weight.tensor)] for weight in weights}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        weight, _, key = name.rpartition(":")
        state.setdefault(number[weight], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
