"""VideoReward without its model: frames, sizes and normalised scores."""

import torch

from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import video_reward


def run_video_reward(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Every recorded choice and score, from the case's constants."""
    constants = case.parameter("constants")
    case.describes("constants_source")
    # The rates and sizes that each entry states count; these are what the published evaluation chooses.
    case.describes("fps", "max_frame_pixels")
    recorded = case.values
    normalised = [video_reward.normalise(raw, constants) for raw in recorded["raw"]]
    frames = []
    for entry in recorded["frames"]:
        indices = video_reward.frame_indices(entry["frames"], entry["fps"], entry["wanted_fps"])
        frames.append(entry | {"count": len(indices), "indices": indices})
    sizes = [
        entry | {"size": list(video_reward.picture_size(entry["height"], entry["width"], entry["max_pixels"]))}
        for entry in recorded["sizes"]
    ]
    return EvaluationOutcome(
        values={
            "raw": recorded["raw"],
            "normalised": normalised,
            "set_means": video_reward.set_means(normalised),
            "without_configuration": video_reward.normalise(recorded["raw"][0], None),
            "frames": frames,
            "sizes": sizes,
        }
    )


CASE = CaseRunner(
    run_video_reward,
    {f"values.{name}.*": Bound(1e-9, "absolute") for name in ("normalised", "set_means", "without_configuration")},
    {"values.raw*": "what the scores are computed from"},
)
