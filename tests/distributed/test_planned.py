"""The planner's arithmetic is that of the parallel runtime: bytes sent, and bytes kept for the backward."""

import pytest
from distributed.keeping import count

from mova_engine.config.memory import MemoryConfig
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import get_preset
from mova_engine.distributed.counted_traffic import SMALL
from mova_engine.predict.context_traffic import reference_shape, reference_traffic, training_traffic
from mova_engine.predict.job import IMPLEMENTATIONS, Job, Layout, PlannedRun
from mova_engine.predict.memory_use import memory
from mova_engine.predict.step_traffic import context_traffic


@pytest.mark.parametrize("checkpointing", ["none", "selective", "out", "full"])
@pytest.mark.parametrize(("ring", "ulysses"), [(1, 2), (1, 4), (1, 8), (2, 4), (4, 2), (16, 1)])
def test_the_planner_sends_what_the_runtime_sends(checkpointing, ring, ulysses):
    config = get_preset("mova-360p")
    run = PlannedRun(Job(config, "lora"), Layout(ring=ring, ulysses=ulysses), MemoryConfig(checkpointing=checkpointing))
    exact = training_traffic(config, MeshShape(ring=ring, ulysses=ulysses), checkpointing).total
    assert context_traffic(run).context == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_planner_s_reference_sends_what_the_counted_baseline_sends(size):
    config = get_preset("mova-360p")
    shape = reference_shape(config, size)
    layout = Layout(ring=shape.ring, ulysses=shape.ulysses)
    run = PlannedRun(Job(config, "lora"), layout, MemoryConfig(checkpointing="full"), IMPLEMENTATIONS["reference"])
    assert context_traffic(run).context == pytest.approx(reference_traffic(config, size).total, rel=1e-3)


def planned(checkpointing: str, layout: Layout) -> float:
    """Bytes that all ranks together keep beside the layers' inputs, as the planner has it."""
    run = PlannedRun(Job(SMALL, "full", precision="fp32"), layout, MemoryConfig(checkpointing=checkpointing))
    parts = memory(run).device
    return layout.context_parallel * sum(
        v for k, v in parts.items() if k.startswith(("saved attention", "attention's"))
    )


@pytest.mark.parametrize("checkpointing", ["selective", "out", "full"])
def test_one_process_keeps_what_the_planner_says(checkpointing):
    assert count(checkpointing) == planned(checkpointing, Layout())


@pytest.mark.parametrize(("world", "ulysses"), [(2, 2), (2, 1), (4, 4), (4, 2), (4, 1)])
def test_processes_that_share_a_clip_keep_what_the_planner_says(worlds, world, ulysses):
    """To the byte, over all ranks: 105 tokens do not divide, and the planner takes the mean."""
    policies, layout = ("selective", "out", "full"), Layout(ring=world // ulysses, ulysses=ulysses)
    found = worlds(world).run("kept_bytes", policies=policies, ulysses=ulysses)
    for policy, kept in zip(policies, zip(*found, strict=True), strict=True):
        assert sum(kept) == pytest.approx(planned(policy, layout), abs=1), policy


def test_selective_keeps_five_tensors_a_layer_at_360p():
    """docs/parallel.md's figure: 22.1 GB a process where four share a clip, half of it where eight do."""
    for size, figure in ((4, 22.1), (8, 11.0)):
        parts = memory(PlannedRun(Job(get_preset("mova-360p"), "lora"), Layout(ulysses=size))).device
        attention = sum(value for name, value in parts.items() if name.startswith(("saved attention", "attention's")))
        assert attention / 1e9 == pytest.approx(figure, abs=0.2)
