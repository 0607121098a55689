"""Case 9: the reference's LoRA adapter file, applied, differentiated and merged."""

import torch
from torch import Tensor

from mova_engine.adapters.lora import load_lora, merged_lora
from mova_engine.config.model import COMPONENTS
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova, dual_tower_forward
from mova_engine.parity import parameters
from mova_engine.parity.case import CaseDevice, GoldenCase, input_gradients
from mova_engine.parity.sampling import build_mova
from mova_engine.parity.steps import gradients


def _forward(
    case: GoldenCase, mova: Mova, expert: int, machine: CaseDevice, leaves: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    timestep = case.tensors["in.timestep"].to(machine.device)
    towers = (mova.expert(expert), mova.audio_dit, mova.dual_tower_bridge)
    video, audio, text = leaves.values()
    inputs = modalities(video, audio, text, timestep, timestep)
    return dual_tower_forward(*towers, *inputs, fps=parameters.number(case, "fps"))


def run_lora(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """Adapters on both experts, their gradients, and the output after merging."""
    mova = build_mova(case, machine)
    for name, factor in case.weights("lora").items():
        if name.endswith("lora_A.weight"):
            parameters.require_size(case, "rank", case.parameter("rank"), name, len(factor))
    load_lora(mova, case.folder / case.meta["weights"]["lora"], alpha=parameters.number(case, "alpha"))
    produced = {}
    keys = ("visual_latents", "audio_latents", "context")
    for expert, name in enumerate(COMPONENTS[:2]):
        leaves = {key: machine.put(case.tensors[f"in.{key}"]).requires_grad_() for key in keys}
        outputs = _forward(case, mova, expert, machine, leaves)
        produced |= {f"out.{name}.{modality}": x for modality, x in zip(("visual", "audio"), outputs, strict=True)}
        if expert == 0:
            cotangents = (machine.put(case.tensors[f"in.cot_{modality}"]) for modality in ("visual", "audio"))
            torch.autograd.backward(outputs, list(cotangents))
            grads = input_gradients(leaves) | gradients({c: getattr(mova, c) for c in COMPONENTS})
            produced |= {f"grad.{key}": g for key, g in grads.items()}
    with torch.no_grad(), merged_lora(mova, dtype=None):
        merged = _forward(case, mova, 0, machine, leaves)
    return produced | {f"out.video_dit.merged.{m}": x for m, x in zip(("visual", "audio"), merged, strict=True)}
