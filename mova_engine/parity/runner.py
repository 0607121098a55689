"""Which runner serves which case, and the run over a folder of cases."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from mova_engine.errors import MovaError, suggest
from mova_engine.parity import adapters, bridges, latents, sampling, schedules, steps, towers
from mova_engine.parity.case import CaseDevice, GoldenCase, find_cases
from mova_engine.parity.evaluation.evaluation_runner import EVALUATION_RUNNERS, run_evaluation_case
from mova_engine.parity.judge import ParityRow, judge
from mova_engine.parity.parameters import check_case

Runner = Callable[[GoldenCase, CaseDevice], dict[str, Tensor]]

RUNNERS: dict[str, Runner] = {
    "case1_video_dit": towers.run_video,
    "case2_audio_dit": towers.run_audio,
    "case3_bridge_full": bridges.run_full,
    "case3_bridge_pooled": bridges.run_pooled,
    "case4_dual_tower_step": steps.run_step,
    "case4_training_step": steps.run_training,
    "case5_scheduler": schedules.run_schedule,
    "case6_audio_vae_fused": latents.run_audio_vae,
    "case6_audio_vae_weight_norm": latents.run_audio_vae,
    "case7_sampling_trajectory": sampling.run_sampling,
    "case8_first_frame_condition": latents.run_condition,
    "case9_lora": adapters.run_lora,
}
# Facts in a case's JSON that are no tensors; each check returns descriptions of what differs.
_FACTS = {"case3_bridge_full": bridges.check_layers, "case5_scheduler": schedules.check_values}
# Cases that have no meaning in another dtype: tables and schedules are computed in float64, the audio VAE runs in
# float32.
_FLOAT32_ONLY = ("case5_", "case6_", "case8_")
# Gradients and inner states have no agreed bfloat16 bound: a bfloat16 run judges outputs.
_LEFT_OUT_BELOW_FLOAT32 = {
    "grad.*": "gradients have no agreed bound below float32",
    "mid.*": "inner states have no agreed bound below float32",
}


def check_known(case: GoldenCase) -> None:
    """MovaError for an unknown case, or one of the model that sets what its runner does not read."""
    known = (*RUNNERS, *EVALUATION_RUNNERS)
    if case.kind not in known:
        raise MovaError(
            f"{case.folder / case.name}.json: unknown case '{case.kind}'.{suggest(case.kind, known)} "
            f"Known: {', '.join(known)}"
        )
    if case.kind in RUNNERS:
        check_case(case)


def run_case(case: GoldenCase, machine: CaseDevice) -> list[ParityRow]:
    """Run one case; one row per recorded tensor that is not an input."""
    check_known(case)
    if case.kind.startswith(_FLOAT32_ONLY):
        machine = CaseDevice(machine.ops, machine.device, torch.float32)
    left_out = {} if machine.dtype == torch.float32 else _LEFT_OUT_BELOW_FLOAT32
    try:
        if case.kind in EVALUATION_RUNNERS:
            return run_evaluation_case(case, machine)
        rows = judge(case.name, case.tensors, RUNNERS[case.kind](case, machine), machine.dtype, left_out)
        facts = _FACTS.get(case.kind, lambda _: [])(case)
    except KeyError as error:
        raise MovaError(f"{case.path}: the case lacks {error}") from None
    except (MovaError, TypeError, ValueError, IndexError, RuntimeError) as error:
        # Sizes that do not fit each other: torch's own words, and the case's name.
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MovaError(told if case.name in told else f"{case.path}: {told}") from error
    return rows + [ParityRow(case.name, "facts", None, 0.0, fact) for fact in facts]


def run_folder(folder: Path, machine: CaseDevice) -> Iterator[tuple[GoldenCase, list[ParityRow]]]:
    """Run every case of a folder. All cases are known before the first runs.

    One that cannot be run stops none of the others: its MovaError comes after them.
    """
    cases = find_cases(folder)
    for case in cases:
        check_known(case)
    failed: list[MovaError] = []
    for case in cases:
        try:
            rows = run_case(case, machine)
        except MovaError as error:
            failed.append(error)
        else:
            yield case, rows
    if failed:
        raise MovaError("; ".join(map(str, failed))) from failed[0]
