"""The clock: what streams, links and events make of a step's tasks, worked out by hand."""

from dataclasses import replace

import pytest
import torch

from mova_engine.config.model import get_preset
from mova_engine.ops.fakes import FakeCall
from mova_engine.predict.hardware import get_hardware
from mova_engine.predict.job import Job
from mova_engine.predict.operator_cost import attention_rates
from mova_engine.rehearsal.memory_tracker import MemoryTracker
from mova_engine.rehearsal.simulated_streams import COMPUTE, MAIN, NETWORK, NODE, StepTimeline, Task, play
from mova_engine.rehearsal.step_clock import Clock

H100, JOB = get_hardware("h100-80gb"), Job(get_preset("mova-360p"), "full")


def compute(seconds: float, *after: int, stream: str = MAIN) -> Task:
    return Task(stream, COMPUTE, seconds, after, "compute", "forward")


def send(seconds: float, *after: int, group: str = "a", resource: str = NODE) -> Task:
    return Task(f"group {group}", resource, seconds, after, f"all_to_all {group}", "forward")


def test_only_what_lasts_longer_than_the_computation_beside_it_is_exposed():
    found = play([compute(1), send(3, 0), compute(2), compute(1, 1)])
    assert found.step == pytest.approx(5) and found.computing == pytest.approx(4)
    assert found.exposed == pytest.approx({"all_to_all a, forward": 1})
    hidden = play([compute(1), send(3, 0), compute(4), compute(1, 1)])
    assert hidden.exposed == {} and hidden.step == pytest.approx(6)
    at_once = play([compute(1), send(3, 0), compute(1, 1)])
    assert at_once.waiting == pytest.approx(3) and at_once.collectives == pytest.approx({"all_to_all a, forward": 3})


def test_collectives_of_a_group_queue_and_groups_share_a_link():
    queued = play([send(2), send(2), compute(1, 1)])
    assert queued.exposed == pytest.approx({"all_to_all a, forward": 4})
    shared = play([send(2), send(1, group="b"), compute(1, 0)])
    # Half of the link until b has ended at 2, then all of it.
    assert shared.step == pytest.approx(4) and shared.waiting == pytest.approx(3)
    apart = play([send(2), send(1, group="b", resource=NETWORK), compute(1, 0)])
    assert apart.step == pytest.approx(3)


def test_copies_on_another_stream_slow_the_computation_and_pass_a_wait_on():
    beside = play([compute(2), compute(2, stream="copies")])
    assert beside.step == pytest.approx(4) and beside.exposed == {}
    # The main stream waits for a copy that waited for a collective.
    found = play([send(3), compute(1, 0, stream="copies"), compute(1, 1)])
    assert found.step == pytest.approx(5) and found.exposed == pytest.approx({"all_to_all a, forward": 4})


def test_a_step_without_collectives_only_computes():
    found = play([compute(1), compute(2)])
    assert (found.step, found.computing, found.waiting) == pytest.approx((3, 3, 0))
    assert StepTimeline.from_dict(found.to_dict()) == found


def test_events_and_streams_order_what_is_recorded():
    clock = Clock(H100, JOB)
    other = type(clock.stream)(clock, "other")
    clock.compute(1.0)
    clock.compute(1.0)
    with other:
        other.wait_stream(clock.streams[0])
        clock.compute(5.0)
        event = other.record_event()
    clock.compute(1.0)
    clock.stream.wait_event(event)
    clock.compute(1.0)
    # The first two are one task; the third is apart, since the other stream waits for those before it alone.
    assert [(t.stream, t.seconds, t.after) for t in clock.tasks] == [
        (MAIN, 2.0, ()),
        ("other", 5.0, (0,)),
        (MAIN, 1.0, ()),
        (MAIN, 1.0, (1,)),
    ]
    clock.begin()
    assert clock.tasks == [] and clock.timeline().step == 0


def test_a_product_takes_its_arithmetic_a_sum_its_memory_and_a_view_nothing():
    cpu = get_hardware("cpu")
    clock, bandwidth = Clock(cpu, replace(JOB, precision="fp32")), cpu.bandwidth * cpu.achieved.bandwidth
    x = torch.ones(256, 256)
    with MemoryTracker("cpu", clock.see):
        y = x @ x
        product = clock.tasks[0].seconds
        y.view(-1).unflatten(0, (2, -1))
        assert clock.tasks[0].seconds == product
        y + y.sum()
    assert product == pytest.approx(2 * 256**3 / (cpu.peak["fp32"] * cpu.achieved.gemm))
    # y read twice, once for its sum, and written once; the sums are four bytes each.
    assert clock.tasks[0].seconds - product == pytest.approx((3 * 256 * 256 * 4 + 8) / bandwidth)


def test_fused_operators_take_their_declared_rates_and_passes():
    clock, bandwidth = Clock(H100, JOB), H100.bandwidth * H100.achieved.bandwidth
    heads = {"q": (1, 4096, 40, 128), "k": (1, 4096, 40, 128)}
    seconds = []
    for call in (
        FakeCall("attention", "flash-attn-3", False, heads, {}, True),
        FakeCall("attention", "flash-attn-3", True, heads, {}, True),
        FakeCall("rms_norm", "triton", False, {"x": (1, 4096, 5120)}, {"x": 2}, True),
    ):
        clock.called(call)
        seconds.append(clock.tasks[0].seconds - sum(seconds))
    forward, backward = attention_rates(H100, JOB, False, "flash-attn-3")
    flops = 4 * 4096**2 * 40 * 128
    assert seconds == pytest.approx([flops / forward, 2.5 * flops / backward, 2 * 4096 * 5120 * 2 / bandwidth])
