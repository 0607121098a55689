"""Cases 1 and 2: one tower, its intermediate states, gradients and tables."""

import re

import torch
from torch import Tensor

from mova_engine.models.layers import Block, ResidualStream, sinusoid
from mova_engine.models.modality import Modality
from mova_engine.models.rope import audio_angles, axis_dims, video_angles
from mova_engine.models.tower import Tower
from mova_engine.parity.case import CaseDevice, GoldenCase, input_gradients


def run_video(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """Case 1."""
    return _run(case, machine, case.video_dit(machine))


def run_audio(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """Case 2."""
    return _run(case, machine, case.audio_dit(machine))


def _run(case: GoldenCase, machine: CaseDevice, tower: Tower) -> dict[str, Tensor]:
    recorded, produced = case.tensors, {}
    for batch in sorted({m[1] for name in recorded if (m := re.match(r"in\.(b\d+)\.x$", name))}):
        inputs = {key: machine.put(recorded[f"in.{batch}.{key}"]) for key in ("x", "context")}
        timestep = recorded[f"in.{batch}.timestep"].to(machine.device)
        produced |= _states(tower, batch, inputs, timestep)
        produced |= _output_and_gradients(
            tower, batch, inputs, timestep, machine.put(recorded[f"in.{batch}.cotangent"])
        )
        with torch.no_grad():
            produced[f"out.{batch}_small"] = tower(Modality(1e-3 * inputs["x"], timestep, 1e-3 * inputs["context"]))
            if f"in.{batch}.timestep2" in recorded:
                timestep = recorded[f"in.{batch}.timestep2"].to(machine.device)
                produced[f"out.{batch}_t2.per_sample"] = tower(Modality(inputs["x"], timestep, inputs["context"]))
                produced[f"out.{batch}_t2.as_reference_batch"] = _as_reference_batch(tower, inputs, timestep)
    return produced | _tables(case, tower)


def _states(tower: Tower, batch: str, inputs: dict[str, Tensor], timestep: Tensor) -> dict[str, Tensor]:
    produced = {}
    prefix = f"mid.{batch}."
    config = tower.config
    with torch.no_grad():
        stream, tower_inputs = tower.embed(Modality(inputs["x"], timestep, inputs["context"]))
        embedded = {"t": tower_inputs.t[:1], "t_mod": tower_inputs.t_mod[:1], "context": tower_inputs.context}
        produced |= {prefix + name: x for name, x in embedded.items()}
        produced[prefix + "t_sinusoid"] = sinusoid(timestep, config.freq_dim)
        produced[prefix + "tokens"] = stream.x
        produced[prefix + "rope_cos"], produced[prefix + "rope_sin"] = tower_inputs.rope
        for index, block in enumerate(tower.blocks):
            assert isinstance(block, Block)
            seen: dict[str, Tensor] = {}
            inputs_of_block = (tower_inputs.t_mod, tower_inputs.context, tower_inputs.rope)
            stream = block(stream, *inputs_of_block, seen.__setitem__)
            # A copy: without gradients a stream serves once.
            seen["out"] = ResidualStream(*stream).settle(tower.ops)
            attention = block.self_attn
            # The model computes norm and rotation as one operator: the state between them is made here.
            seen["q_norm"] = tower.ops.rms_norm(
                attention.q(seen["self_attn_in"]), attention.norm_q.weight, eps=config.eps
            )
            produced |= {f"{prefix}block{index}.{name}": x for name, x in seen.items()}
        produced[prefix + "head"] = tower.head(stream, tower_inputs.t)
    return produced


def _output_and_gradients(
    tower: Tower, batch: str, inputs: dict[str, Tensor], timestep: Tensor, cotangent: Tensor
) -> dict[str, Tensor]:
    tower.zero_grad(set_to_none=True)
    leaves = {key: x.clone().requires_grad_() for key, x in inputs.items()}
    out = tower(Modality(leaves["x"], timestep, leaves["context"]))
    (out * cotangent).sum().backward()
    gradients = {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}
    gradients |= input_gradients(leaves)
    return {f"out.{batch}": out} | {f"grad.{batch}.{name}": g.clone() for name, g in gradients.items()}


def _as_reference_batch(tower: Tower, inputs: dict[str, Tensor], timestep: Tensor) -> Tensor:
    """The reference's batch of two with two timesteps.

    Its video head adds t [2, d] to the modulation [1, 2, d], so that both samples get the shift of sample 0's t and the
    scale of sample 1's. Ours is per sample; the mixture is reproduced here, outside the model. The audio head does not
    mix.
    """
    if tower.patch_embedding.weight.ndim == 3:
        return tower(Modality(inputs["x"], timestep, inputs["context"]))
    stream, tower_inputs = tower.embed(Modality(inputs["x"], timestep, inputs["context"]))
    for block in tower.blocks:
        stream = block(stream, tower_inputs.t_mod, tower_inputs.context, tower_inputs.rope)
    head = tower.head
    shift, scale = (head.modulation.float() + tower_inputs.t).expand(2, 2, -1).unbind(1)
    normed = tower.ops.norm_modulate(stream.settle(tower.ops), shift, scale, eps=head.eps)
    return tower.unpatchify(head.head(normed), tower_inputs.grid)


def _tables(case: GoldenCase, tower: Tower) -> dict[str, Tensor]:
    recorded = case.tensors
    rows, head_dim = recorded["table.rope_rows"], tower.config.head_dim
    longest = int(rows.max()) + 1
    if tower.patch_embedding.weight.ndim == 3:
        angles = audio_angles(longest, head_dim)[rows]
        parts = angles.split([recorded[f"table.rope_cos_{axis}"].shape[1] for axis in "thw"], 1)
    else:
        widths = [dim // 2 for dim in axis_dims(head_dim)]
        parts = []
        for axis in range(3):
            # A grid that is long on one axis only gives that axis's rows.
            frames, height, width = (longest if i == axis else 1 for i in range(3))
            parts.append(video_angles((frames, height, width), head_dim)[rows].split(widths, 1)[axis])
    produced = {
        "table.rope_rows": rows,
        "table.sinusoid": sinusoid(recorded["in.table.timesteps"], tower.config.freq_dim),
    }
    for axis, part in zip("thw", parts, strict=True):
        produced |= {f"table.rope_cos_{axis}": part.cos().float(), f"table.rope_sin_{axis}": part.sin().float()}
    return produced
