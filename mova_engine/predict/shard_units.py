"""FSDP's units, which are gathered by themselves, and what a device holds of those that are gathered and summed ahead.

Units are as of `distributed.fsdp`; what is ahead is as of `distributed.unit_order` and `MemoryConfig.prefetch`.
"""

from mova_engine.predict.flops import layer_parameters, parameter_counts
from mova_engine.predict.job import WIDTHS, PlannedRun, sharded
from mova_engine.predict.row_padding import block_padding
from mova_engine.predict.saved_activations import freed_by_layers

_FP32 = WIDTHS["fp32"]
# Units of a layer by component: a block, or both directions of a bridge layer.
_UNITS = {"video_dit": 1, "audio_dit": 1, "dual_tower_bridge": 2}


def largest_layer(run: PlannedRun, component: str) -> float:
    """Weights of a block, or of both directions of a bridge layer."""
    model = run.job.model
    layers = {
        "video_dit": model.video.num_layers,
        "audio_dit": model.audio.num_layers,
        "dual_tower_bridge": max(len(model.bridge.layers), 1),
    }
    return layer_parameters(parameter_counts(model)[component]) / layers[component]


def unit_weights(run: PlannedRun) -> dict[str, float]:
    """By component that runs, weights of one of its units, with the rows that FSDP adds."""
    model, ranks = run.job.model, sharded(run.layout)
    added = {"video_dit": block_padding(model.video, ranks), "audio_dit": block_padding(model.audio, ranks)}
    return {name: largest_layer(run, name) / _UNITS[name] + added.get(name, 0) for name in run.job.components}


def largest_unit(run: PlannedRun) -> float:
    """Weights of the largest unit."""
    return max(unit_weights(run).values())


def gradient_bytes(run: PlannedRun) -> int:
    """Of one weight of a layer: as they come, and as they are summed; 0 where that is their place in the step."""
    apart = run.job.task == "full" and (sharded(run.layout) > 1 or run.policy.weights_on_host)
    return (run.job.width + _FP32) * apart


def layer_ahead(run: PlannedRun) -> float:
    """Bytes that gathering, and summing, a layer ahead adds to the backward at its fullest, beyond what is gathered and
    summed unit by unit.

    The backward begins with the layers that have a video block alone, of which no more is gathered than without. Where
    it comes to layers with a bridge, two of them are there, one as it travels, and the copy in which the video block
    came; and of as many units as a layer has, the last ones, the gradients that are summed. What the layers between
    had kept is free by then.
    """
    policy, model, units = run.policy, run.job.model, unit_weights(run)
    if policy.prefetch == "unit" or not {"video_dit", "dual_tower_bridge"} <= units.keys():
        return 0.0
    layers, bridges = model.video.num_layers, model.bridge.layers
    alone = layers - max(model.audio.num_layers, max(bridges, default=-1) + 1)
    freed = freed_by_layers(run) * run.job.batch / layers
    video, small = units["video_dit"], sum(_UNITS[name] * units[name] for name in units if name != "video_dit")
    width = run.job.width if run.job.task == "full" else run.frozen_width
    gathered = (video + 2 * small) * width * (policy.gathered != "step")
    found = [gathered - alone * freed]
    if policy.prefetch == "all" and run.job.task == "full":
        together = sum(_UNITS[name] for name in units)
        before = min(alone, together)
        # Of layers with a video block alone so many; the rest of the units are a layer's.
        summed = (before - 1) * video if before == together else before * video + small
        found = [gathered + summed * _FP32 - alone * freed, max(before - 1, 0) * (video * _FP32 - freed)]
    return max(0.0, *found)
