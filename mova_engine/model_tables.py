"""`mova describe MODEL`: a model's parameters and its FLOPs, without memory for its weights."""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch.nn as nn

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import listed_components
from mova_engine.checkpoints.locate import open_model
from mova_engine.checkpoints.quantised_files import open_component
from mova_engine.config.clip import ClipSettings
from mova_engine.config.model import PRESETS, MovaConfig, get_preset
from mova_engine.errors import MovaError, suggest
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
from mova_engine.predict.flops import active_parameters, forward_flops, parameter_counts, training_flops

LORA_RANK = 16
UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
# Digits after the point of the parts whose names begin so; the others are whole numbers.
DECIMALS = {"bridge": 1, "audio": 2, "video embeddings": 2}


def describe(config: MovaConfig) -> str:
    """Return the parameter and FLOPs tables of a model, built on the meta device: its weights take no memory.

    Raises MovaError when the model built and the arithmetic of `flops.parameter_counts` disagree.
    """
    model = Mova(config, bind(get_backend("cpu"), "reference"), device="meta")
    lines = [_headline(config), "", "parameters"]
    for name, groups in parameter_counts(config).items():
        component = getattr(model, name)
        total = sum(parameter.numel() for parameter in component.parameters())
        if total != sum(groups.values()):
            raise MovaError(f"{name} has {total} parameters, but its configuration means {sum(groups.values())}")
        other = " (and as many in video_dit_2)" if name == "video_dit" and config.experts == 2 else ""
        lines += [f"{name + other:58}{_parameters(total):>14}", *_parameter_rows(component)]
    everything = sum(parameter.numel() for parameter in model.parameters())
    lines += [f"{'active: one expert, audio tower, bridge':58}{_parameters(active_parameters(config), 2):>14}"]
    lines += [f"{'in all':58}{_parameters(everything, 2):>14}"]
    return "\n".join([*lines, "", *_forward_rows(config), "", *_training_rows(config)])


def _headline(config: MovaConfig) -> str:
    clip = config.clip
    return (
        f"{config.name}: {clip.frames} frames of {clip.height}x{clip.width} at {clip.fps:g} fps: {clip.video_tokens} "
        f"video tokens, {clip.audio_tokens} audio tokens, {config.text_tokens} text tokens"
    )


def _parameters(count: int, decimals: int = 3) -> str:
    scale, unit = (1e9, "B") if count >= 1e8 else (1e6, "M")
    return f"{count / scale:.{decimals}f} {unit}"


def _parameter_rows(component: nn.Module) -> Iterable[str]:
    """One row for the parameters of a name in all layers; layers are alike."""
    layers: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, parameter in component.named_parameters():
        row = re.sub(r"^(blocks|\w+_conditioners)\.\d+\.", r"\1.*.", name), tuple(parameter.shape)
        layers[row] = layers.get(row, 0) + 1
    for (name, shape), times in layers.items():
        yield f"  {name:<56}{math.prod(shape) * times:>14,}  {times:>3} x {list(shape)}"


def _unit(flops: float) -> int:
    """Index in UNITS of the largest unit of which `flops` is at least a tenth."""
    return next((i for i, (scale, _) in enumerate(UNITS) if flops >= 0.1 * scale), len(UNITS) - 1)


def _forward_rows(config: MovaConfig) -> Iterable[str]:
    cost = forward_flops(config)
    index = _unit(cost.total)
    (total_scale, total_unit), (scale, unit) = UNITS[index], UNITS[min(index + 1, len(UNITS) - 1)]
    yield f"{'forward of one clip, one evaluation':40}{unit:>12}"
    for part, flops in cost.parts.items():
        digits = next((digits for start, digits in DECIMALS.items() if part.startswith(start)), 0)
        yield f"  {part:38}{flops / scale:>12.{digits}f}{100 * flops / cost.total:>6.0f}%"
    yield f"  {'total, ' + total_unit:38}{cost.total / total_scale:>12.4g}"


def _training_rows(config: MovaConfig) -> Iterable[str]:
    heads = ("model", "hw, no ckpt", "hw, selective", "hw, full ckpt")
    runs = {"full fine-tune": None, f"LoRA r{LORA_RANK}": LORA_RANK}
    costs = {name: training_flops(config, lora_rank=rank) for name, rank in runs.items()}
    scale, unit = UNITS[_unit(costs["full fine-tune"].model)]
    yield f"{'training, ' + unit + ' per clip':40}" + "".join(f"{head:>14}" for head in heads)
    for name, cost in costs.items():
        values = [x / scale for x in (cost.model, cost.hardware, cost.hardware_selective, cost.hardware_full)]
        yield f"  {name:38}" + "".join(f"{value:>14.{1 if value >= 20 else 2}f}" for value in values)


def stored_weights(folder: Path) -> str:
    """A table of how a model folder's components hold their weights, by headers: tensors in each format, and bytes."""
    rows: list[tuple[str, str, list[int]]] = []
    for name in listed_components(folder):
        stored, kinds = open_component(folder / name), dict[str, list[int]]()
        found = [(each.dtype, each.bytes) for each in stored.plain.values()]
        for weight in stored.quantised.values():
            found.append((weight.format.name, sum(tensor.bytes for _, tensor in weight.sources.values())))
        for kind, size in found:
            kinds.setdefault(kind, []).append(size)
        rows += [(name, kind, kinds[kind]) for kind in sorted(kinds, key=lambda kind: -sum(kinds[kind]))]
    whole = sum(sum(sizes) for _, _, sizes in rows)
    scale, unit = (1e9, "GB") if whole >= 1e8 else (1e6, "MB")
    lines = [f"{'stored':<28}{'in':<28}{'tensors':>8}{unit:>10}"]
    lines += [f"  {name:<26}{kind:<28}{len(sizes):>8}{sum(sizes) / scale:>10.3f}" for name, kind, sizes in rows]
    return "\n".join([*lines, f"  {'in all':<62}{whole / scale:>10.3f}"])


def named_model(name: str, clip: ClipSettings) -> tuple[MovaConfig, Path | None]:
    """The sizes of a preset, or those of a model folder or a training run, with the folder."""
    # A preset's name is one even where a folder has it too; what looks like a path is meant as one.
    if name in PRESETS:
        return replace(get_preset(name), clip=clip.over(get_preset(name).clip)), None
    if not (Path(name).exists() or os.sep in name):
        known = f"{', '.join(PRESETS)}, or the path of a model folder or run"
        raise MovaError(f"unknown model '{name}'.{suggest(name, PRESETS)} Known: {known}")
    folder, config = open_model(name, clip)
    return config, folder
