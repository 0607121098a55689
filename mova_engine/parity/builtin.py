"""Parity without recorded numbers: what the chosen operators compute on a device, against the reference operators.

The rule for operators is that of their tests (`mova_engine.ops.testing.verify`). For towers truth is the reference in
float64 (here on the CPU); the reference in the run's own dtype makes some error against it, and the device may make
`SLACK` times as much.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mova_engine.backend import Backend, get_backend
from mova_engine.config.model import get_preset
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova
from mova_engine.ops import OPERATORS, REFERENCE, OpTable, bind, bind_operator, torch_dtypes
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import verify
from mova_engine.parity.judge import ParityRow

SLACK = 2.0
SEED = 2026


def operator_rows(backend: Backend, dtype: torch.dtype) -> Iterator[ParityRow]:
    """A row for each operator that has a chosen implementation: its worst tensor of all small cases.

    Differences are shares of what is allowed, so that every bound is 1.
    """
    for operator in OPERATORS.values():
        function, choice = bind_operator(operator, backend)
        entry = next((i for i in operator.implementations if i.name == choice.implementation), None)
        if entry is None or dtype not in torch_dtypes(entry):
            continue
        rows = []
        for case in cases_of(operator):
            if case.size == "test":
                for finding in verify(operator, function, case, backend.device(), dtype):
                    name = f"{choice.implementation}, {case.name}, {finding.tensor}"
                    rows.append(
                        ParityRow(operator.name, name, None if finding.note else finding.share, 1.0, finding.note)
                    )
        yield max(rows, key=lambda row: float("inf") if row.difference is None else row.difference)


def tower_rows(backend: Backend, ops: OpTable, dtype: torch.dtype) -> list[ParityRow]:
    """Forward and backward of the nano model with random weights: outputs, and all gradients of each component.

    Differences are root mean squares relative to the truth's; the bound of each is SLACK times what the reference
    operators differ on the CPU in the same dtype.
    """
    truth, expected = reference_towers(dtype)
    found = _run(ops, backend.device(), dtype, rounded=dtype)
    name = f"nano {str(dtype).removeprefix('torch.')}"
    rows = []
    for tensor, exact in truth.items():
        error, usual = (float((x[tensor] - exact).norm() / exact.norm()) for x in (found, expected))
        finite = bool(found[tensor].isfinite().all())
        rows.append(ParityRow(name, tensor, error if finite else None, SLACK * usual, "" if finite else "not finite"))
    return rows


def reference_towers(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients by the reference operators on the CPU: in float64, and in `dtype`."""
    cpu = get_backend("cpu")
    plain = bind(cpu, REFERENCE)
    exact = _run(plain, cpu.device(), torch.float64, rounded=dtype)
    return exact, _run(plain, cpu.device(), dtype, rounded=dtype)


def _run(ops: OpTable, device: torch.device, dtype: torch.dtype, rounded: torch.dtype) -> dict[str, Tensor]:
    """Outputs and gradients in float64 on the CPU; weights and inputs are first rounded to `rounded`."""
    config = get_preset("nano")
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + offset
        return x.to(rounded).to(dtype)

    model = Mova(config, ops, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(draw(*parameter.shape, scale=fan_in**-0.5 if fan_in > 1 else 0.1, offset=offset))
    model.to(device)
    video = draw(1, config.video.in_dim, *config.clip.latent_shape).to(device)
    audio = draw(1, config.audio.in_dim, config.clip.audio_tokens).to(device)
    text = draw(1, config.text_tokens, config.video.text_dim).to(device)
    outputs = model(*modalities(video, audio, text, torch.tensor([950.0]), torch.tensor([500.0])))
    cotangents = [draw(*x.shape).to(device) for x in outputs]
    torch.autograd.backward(outputs, cotangents)
    results = {f"out.{name}": x.detach().cpu().double() for name, x in zip(("video", "audio"), outputs, strict=True)}
    for name, component in model.named_children():
        gradients = [p.grad for p in component.parameters() if p.grad is not None]
        results[f"grad.{name}"] = torch.cat([g.flatten().cpu().double() for g in gradients])
    return results
