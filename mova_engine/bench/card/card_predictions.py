"""What the planner says of the parts of a suite: which settings and sizes fit the card, and how long they take.

Every figure here is a prediction of a cost model.
"""

from dataclasses import asdict, replace
from typing import Any

from mova_engine.bench.jobs import stack_config, with_towers
from mova_engine.bench.smaller_sizes import smaller_config
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import MovaConfig
from mova_engine.errors import MovaError
from mova_engine.predict.flops import layer_parameters, parameter_counts
from mova_engine.predict.hardware import Hardware
from mova_engine.predict.job import IMPLEMENTATIONS, OURS, Job, Layout, PlannedRun
from mova_engine.predict.memory_use import memory
from mova_engine.predict.search import Plan, fitting
from mova_engine.predict.step_time import predict

# What is measured is bf16 and whole: quantised weights are other operators, chunks are for longer clips.
_FIXED = {"frozen": "activations", "chunking": "none"}
_COMPUTED = ("GEMM", "attention", "memory-bound passes")
# How the stack saves memory, the fastest first.
_STACK_POLICIES = (
    MemoryConfig(checkpointing="selective"),
    MemoryConfig(checkpointing="selective", inputs="host"),
    MemoryConfig(checkpointing="selective", inputs="host", saved="host"),
)


def step_plan(task: str, config: MovaConfig, hardware: Hardware, **fixed: str) -> Plan:
    """The planner's choice for a step of `task` on one card, of a smaller model if the whole one does not fit.

    fixed: settings of memory that are not the planner's to choose. Raises MovaError if nothing fits.
    """
    model: MovaConfig | None = config
    while model is not None:
        found = fitting(Job(model, task=task), Layout(), hardware, IMPLEMENTATIONS[OURS], {**_FIXED, **fixed})
        plans = [plan for plan in found if plan.run.policy.weights != "files"]
        if plans:
            return plans[0]
        model = smaller_config(model, layers=True)
    raise MovaError(f"no {task} step fits {hardware.title}")


def stack_plan(config: MovaConfig, hardware: Hardware) -> tuple[MovaConfig, MemoryConfig, dict[str, Any]]:
    """How many video blocks fit, by which settings, and what is predicted of their forward and backward. Raises
    MovaError if none fit.
    """
    for blocks in range(config.video.num_layers, 0, -1):
        model = stack_config(with_towers(config, video=replace(config.video, num_layers=blocks)))
        gradients = layer_parameters(parameter_counts(model)["video_dit"]) / blocks * 2
        for policy in _STACK_POLICIES:
            frozen = PlannedRun(Job(model, task="lora", lora_rank=1, components=("video_dit",)), policy=policy)
            size = memory(frozen, hardware.machine).total + gradients
            if size <= hardware.budget:
                trained = predict(PlannedRun(Job(model, components=("video_dit",)), policy=policy), hardware)
                seconds = sum(value for part, value in trained.parts.items() if part != "optimizer")
                return model, policy, {"seconds": seconds, "bytes": size, "hidden": trained.hidden}
    raise MovaError(f"not one video block fits {hardware.title}")


def predicted(plan: Plan) -> dict[str, Any]:
    """A plan's figures, as a row has them."""
    found = plan.prediction
    return {
        "seconds": found.seconds,
        "bytes": plan.memory.total,
        "parts": found.parts,
        "hidden": found.hidden,
        "mfu": found.mfu,
        "hfu": found.hfu,
    }


def settings_of(policy: MemoryConfig) -> dict[str, str]:
    """The settings of memory that bear on what is measured."""
    names = ("checkpointing", "weights", "inputs", "saved")
    return {name: value for name, value in asdict(policy).items() if name in names}


def layer_seconds(config: MovaConfig, hardware: Hardware, component: str) -> float:
    """Predicted seconds of forward and backward of one layer of "video_dit", "audio_dit" or "dual_tower_bridge",
    nothing computed again: what a second one adds to a step.
    """

    def seconds(layers: int) -> float:
        if component == "dual_tower_bridge":
            bridge = replace(config.bridge, interaction_strategy="custom", interaction_layers=tuple(range(layers)))
            job = Job(replace(config, bridge=bridge))
        else:
            tower = component.removesuffix("_dit")
            thinned = {tower: replace(getattr(config, tower), num_layers=layers)}
            job = Job(with_towers(config, **thinned), components=(component,))
        parts = predict(PlannedRun(job, policy=MemoryConfig()), hardware).parts
        return sum(parts[name] for name in _COMPUTED)

    return seconds(2) - seconds(1)
