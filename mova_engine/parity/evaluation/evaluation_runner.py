"""Which file runs which evaluation case, and the run of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from mova_engine.ops import resolve
from mova_engine.parity.case import CaseDevice, GoldenCase
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome, judge_evaluation
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.parity.judge import ParityRow


@dataclass(frozen=True)
class CaseRunner:
    """How a kind of case is run and judged.

    bounds: {pattern: Bound} for tensors and "values.*"; what none matches must be equal. unjudged: {pattern: reason}.
    """

    run: Callable[[StatedCase, torch.device], EvaluationOutcome]
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    unjudged: Mapping[str, str] = field(default_factory=dict)


# What every case records of itself that is no result.
UNJUDGED = {
    "values.rounding*": "the reference's own rounding",
    "values.order*": "the order of the recorded clips",
}
_HERE = "mova_engine.parity.evaluation"
EVALUATION_RUNNERS = {
    "case1_faces": f"{_HERE}.faces_case:CASE",
    "case1_syncnet": f"{_HERE}.syncnet_case:CASE",
    "case2_desync_end_to_end": f"{_HERE}.synchformer_case:END_TO_END",
    "case2_synchformer": f"{_HERE}.synchformer_case:CASE",
    "case3_imagebind": f"{_HERE}.imagebind_case:CASE",
    "case4_panns": f"{_HERE}.panns_case:CASE",
    "case4_set_metrics": f"{_HERE}.set_metrics_case:CASE",
    "case5_clap": f"{_HERE}.clap_case:CASE",
    "case6_dnsmos": f"{_HERE}.dnsmos_case:CASE",
    "case7_av_align": f"{_HERE}.av_align_case:CASE",
    "case8_cpcer": f"{_HERE}.transcripts_case:CASE",
    "case9_loudness": f"{_HERE}.loudness_case:CASE",
    "case10_audiobox": f"{_HERE}.audiobox_case:CASE",
    "case10_dover": f"{_HERE}.dover_case:CASE",
    "case10_eat": f"{_HERE}.eat_case:CASE",
    "case11_decoding": f"{_HERE}.decoding_case:CASE",
    "case12_video_reward": f"{_HERE}.video_reward_case:CASE",
}


@torch.no_grad()
def run_evaluation_case(case: GoldenCase, machine: CaseDevice) -> list[ParityRow]:
    """Run one case in float32; a row for every recorded tensor and value that is a result.

    Raises MovaError for a parameter that the run does not read.
    """
    runner: CaseRunner = resolve(EVALUATION_RUNNERS[case.kind])
    stated = StatedCase(case)
    outcome = runner.run(stated, machine.device)
    stated.check_all_read()
    return judge_evaluation(case, stated.tensors, outcome, runner.bounds, {**UNJUDGED, **runner.unjudged})
