"""The cost model obeys its device's limits; the fit learns from its rows alone and recovers what made them."""

import math
from dataclasses import replace

import pytest

from mova_engine.backend import describe_backend
from mova_engine.config.memory import CHECKPOINTING, PLAIN, TASKS, MemoryConfig
from mova_engine.config.model import get_preset
from mova_engine.ops.machine import KINDS, Machine
from mova_engine.predict.calibrate import PRIOR, calibrated, fit, leave_one_out, predicted_seconds, solve
from mova_engine.predict.hardware import get_hardware, hardware_names
from mova_engine.predict.job import IMPLEMENTATIONS, OURS, Job, Layout, PlannedRun
from mova_engine.predict.memory_use import memory
from mova_engine.predict.published import CALIBRATED, ROWS
from mova_engine.predict.search import policies
from mova_engine.predict.shard_units import largest_unit
from mova_engine.predict.step_time import encode_seconds, predict
from mova_engine.predict.step_traffic import step_traffic

SELECTIVE = PLAIN["lora"]
M360, M720 = get_preset("mova-360p"), get_preset("mova-720p")
H100 = get_hardware("h100-80gb")
FITTED = [row for row in ROWS if row.fitted]


@pytest.mark.parametrize("name", hardware_names())
@pytest.mark.parametrize("task", TASKS)
def test_no_step_beats_the_peak(name, task):
    hardware = get_hardware(name)
    for model in (M360, M720, get_preset("bench-mid")):
        prediction = predict(PlannedRun(Job(model, task)), hardware)
        assert prediction.hfu < 1 and prediction.mfu <= prediction.hfu
        assert prediction.hardware_flops / hardware.peak_flops("bf16") < prediction.seconds


@pytest.mark.parametrize("factor", ["gemm", "attention", "bandwidth", "link"])
def test_a_better_device_is_never_slower(factor):
    run = PlannedRun(Job(M720, "full", online=True), Layout(dp_shard=2, ring=2, ulysses=8))
    slow, fast = (predict(run, H100.with_achieved(**{factor: value})).seconds for value in (0.5, 1.0))
    assert fast < slow


def test_checkpointing_costs_time_in_its_order():
    seconds = {
        name: predict(PlannedRun(Job(M360, "full"), Layout(ulysses=4), MemoryConfig(checkpointing=name)), H100).seconds
        for name in CHECKPOINTING
    }
    assert seconds["none"] < seconds["selective"] < seconds["out"] < seconds["full"]


def test_parts_add_up_and_what_is_hidden_is_no_part():
    run = PlannedRun(Job(M720, "lora"), Layout(ring=2, ulysses=8), replace(SELECTIVE, inputs="host"))
    prediction = predict(run, H100)
    assert prediction.seconds == sum(prediction.parts.values())
    assert set(prediction.hidden) == {"Ulysses", "ring", "FSDP", "offload"} and prediction.parts["offload"] == 0
    starved = replace(H100, host_bandwidth=1e6)
    slow = predict(run, starved)
    bus = max(step_traffic(run).to_host, step_traffic(run).from_host) / starved.host_rate
    assert slow.parts["offload"] + slow.hidden["offload"] == pytest.approx(bus)


def test_what_stays_gathered_or_unsummed_for_a_step_costs_memory_and_saves_traffic():
    """Ten micro-batches of joint training on eight devices, of which two hold a copy of the weights between them."""
    job, layout = Job(get_preset("mova-360p"), "full", clips=80), Layout(dp_replicate=4, dp_shard=2)

    def run(**settings) -> PlannedRun:
        return PlannedRun(job, layout, replace(PLAIN["full"], **settings))

    plain, kept, once = run(), run(gathered="step"), run(gradients="step")
    traffic = {each: step_traffic(each) for each in (plain, kept, once)}
    assert traffic[plain].gather == 20 * traffic[kept].gather and traffic[once].gather == traffic[plain].gather
    assert traffic[plain].scatter == 10 * traffic[once].scatter and traffic[kept].scatter == traffic[plain].scatter
    # Copies of the weights sum rows of gradients, once a step in any case, and send all of them but for what stays.
    assert {x.replicas for x in traffic.values()} == {traffic[once].scatter * 2 * 3 / 4}
    weights = memory(kept).device["weights gathered for the step"]
    gradients = memory(once).device["gradients not yet summed over the devices"]
    assert gradients == weights == 2 * traffic[kept].gather, "half of the gradients, in float32, on each device"
    assert not any("not yet summed" in part for part in memory(PlannedRun(replace(job, clips=8), layout)).device)
    for name, value in (("gathered", "step"), ("gradients", "step")):
        settings = MemoryConfig(**{name: value})
        assert settings.unavailable("full", sharded=False).keys() == {name}
        assert settings.unavailable("inference", sharded=True).keys() == {name}
        assert not settings.unavailable("lora", sharded=True)


def test_a_layer_ahead_is_paid_for_in_memory_and_saves_waits():
    """Phase 3 on 1,024 devices: of 40 layers the first 30 have a bridge; the backward begins with ten others."""
    job, layout, npu = Job(M720, "full"), Layout(dp_shard=64, ring=2, ulysses=8), get_hardware("910a2")

    def run(prefetch: str, **settings) -> PlannedRun:
        return PlannedRun(job, layout, MemoryConfig(checkpointing="full", prefetch=prefetch, **settings))

    unit, weights, everything = (run(x) for x in ("unit", "weights", "all"))
    assert step_traffic(unit) == step_traffic(weights) == step_traffic(everything)
    waits = [predict(x, npu).parts["communication"] for x in (unit, weights, everything)]
    assert waits[1] < 0.5 * waits[0] and waits[2] < 0.1 * waits[0]
    # What ten layers keep is more than a layer that is gathered; gradients in float32 of three video blocks more.
    block, gathered = largest_unit(unit), memory(everything).total - memory(unit).total
    assert memory(weights).total == memory(unit).total and 2.5 * 4 * block < gathered < 3 * 4 * block
    kept = run("weights", gathered="step")
    assert memory(kept).total == memory(run("unit", gathered="step")).total, "whole weights are there in any case"
    assert MemoryConfig(prefetch="all").unavailable("full", sharded=False).keys() == {"prefetch"}
    assert MemoryConfig(prefetch="all").unavailable("inference", sharded=True).keys() == {"prefetch"}
    assert not MemoryConfig(prefetch="all").unavailable("lora", sharded=True)
    for task, tried in (("full", {"unit", "weights", "all"}), ("lora", {"unit", "weights"}), ("inference", {"unit"})):
        found = policies(Job(M720, task), layout, npu, IMPLEMENTATIONS[OURS])
        assert {policy.prefetch for policy in found} == tried


def test_copies_sum_whole_gradients_beside_the_last_backward_but_on_an_npu():
    run = PlannedRun(Job(M360, "lora", clips=8), Layout(dp_shard=8, shard=False))
    npu, gpu = get_hardware("910a2"), H100
    assert all(describe_backend(kind).sums_in_backward == Machine(kind).sums_in_backward for kind in KINDS)
    assert predict(run, gpu).hidden["copies' gradients"] == pytest.approx(
        step_traffic(run).replicas / (gpu.link.bandwidth * gpu.achieved.link)
    )
    assert "copies' gradients" not in predict(run, npu).hidden


def test_exchanges_and_rings_are_paid_for_where_attention_does_not_cover_them():
    run = PlannedRun(Job(M720, "inference", evaluations=1), Layout(ring=2, ulysses=4, shard=False))
    traffic, link = step_traffic(run), H100.link.bandwidth * H100.achieved.link
    others = traffic.reduce / link + traffic.collectives * H100.latency
    exchange, ring = traffic.all_to_all / link, traffic.ring / link
    covered = predict(run, H100)
    # 10 heads in two chunks: of q, k, v and the output two halves wait.
    assert covered.parts["communication"] == pytest.approx(others + exchange / 4)
    assert covered.hidden == pytest.approx({"Ulysses": exchange * 3 / 4, "ring": ring})
    quick = predict(run, H100.with_achieved(attention=1e3))
    assert quick.hidden == pytest.approx(
        {"Ulysses": quick.parts["attention"] / 2, "ring": quick.parts["attention"] / 2}
    )
    assert sum(quick.hidden.values()) + quick.parts["communication"] == pytest.approx(others + exchange + ring)


def test_the_last_gradients_of_a_ring_wait_by_chunks_of_heads():
    def waits(layout: Layout) -> float:
        run = PlannedRun(Job(M720, "full"), replace(layout, shard=False), replace(SELECTIVE, checkpointing="none"))
        found, traffic = predict(run, H100), step_traffic(run)
        return traffic.ring / (H100.link.bandwidth * H100.achieved.link) - found.hidden["ring"]

    # k's and v's gradients in bf16, once for each layer: of all heads, and of a half of a quarter.
    alone, both = waits(Layout(ring=2)), waits(Layout(ring=2, ulysses=4))
    tail = 2 * 40 * M720.clip.video_tokens // 2 * 5120 * 2 / (H100.link.bandwidth * H100.achieved.link)
    assert alone == pytest.approx(tail, rel=1e-6) and both == pytest.approx(tail / 4 / 2, rel=1e-6)


def test_a_switch_gives_a_device_its_rate_and_a_mesh_each_pair():
    switch, mesh = H100.link, get_hardware("910a2").link
    assert switch.all_to_all(2) == switch.all_to_all(8) == 450e9
    assert mesh.all_to_all(4) == 3 * mesh.bandwidth and mesh.all_to_all(2) == mesh.bandwidth


def test_a_group_beyond_a_node_pays_the_network():
    inside = predict(PlannedRun(Job(M720, "full"), Layout(ulysses=8)), H100).parts["communication"]
    outside = predict(
        PlannedRun(Job(M720, "full"), Layout(ulysses=8)), replace(H100, link=replace(H100.link, devices=4))
    )
    assert outside.parts["communication"] > 4 * inside


def test_reference_encodes_on_every_rank_and_ours_in_rounds():
    layout, job = Layout(ulysses=4), Job(M360, "lora", online=True)
    theirs = PlannedRun(job, layout, MemoryConfig(checkpointing="full"), IMPLEMENTATIONS["reference"])
    ours = PlannedRun(job, layout)
    # Ours computes of the first-frame condition only what does not repeat itself.
    once = PlannedRun(job, layout, implementation=replace(ours.implementation, encodes=2))
    assert encode_seconds(theirs, H100) == pytest.approx(4 * encode_seconds(once, H100))
    assert 1.6 * encode_seconds(ours, H100) < encode_seconds(once, H100) < 2 * encode_seconds(ours, H100)
    assert encode_seconds(PlannedRun(Job(M360, "lora"), layout), H100) == 0


def test_adapters_double_the_references_passes():
    reference, full = IMPLEMENTATIONS["reference"], replace(PLAIN["lora"], checkpointing="full")
    runs = (PlannedRun(Job(M360, task), policy=full, implementation=reference) for task in ("lora", "full"))
    lora, full = (predict(run, H100).parts["memory-bound passes"] for run in runs)
    assert lora == pytest.approx(2 * full)


def test_only_the_named_rows_are_fitted():
    assert [row.name for row in FITTED] == ["inference 360p, 1 x 910B", "inference 360p, 4 x 910B"]
    assert {row.hardware for row in FITTED} == {CALIBRATED}
    for name in hardware_names():
        assert (calibrated(name) == get_hardware(name)) == (name != CALIBRATED)


def test_the_fit_meets_its_rows_and_recovers_what_made_them():
    start = get_hardware(CALIBRATED)
    found = fit(start, FITTED)
    for row in FITTED:
        assert predicted_seconds(row, found.hardware) == pytest.approx(row.seconds, rel=0.03)
    assert all(abs(math.log(factor)) < 2 * PRIOR[name] for name, factor in found.factors.items())
    # Rows made by known factors: the time they predict comes back, and the link's factor, which one row isolates.
    truth = start.with_achieved(attention=0.9, link=0.5)
    made = [replace(row, seconds=predicted_seconds(row, truth)) for row in FITTED]
    again = fit(start, made)
    for row in made:
        assert predicted_seconds(row, again.hardware) == pytest.approx(row.seconds, rel=0.01)
    assert again.factors["link"] == pytest.approx(0.5, rel=0.1)


def test_without_rows_the_prior_stays_and_a_row_left_out_is_not_used():
    start = get_hardware(CALIBRATED)
    assert set(fit(start, []).factors.values()) == {1.0}
    left_out = leave_one_out(start, FITTED)
    doubled = [replace(FITTED[0], seconds=2 * FITTED[0].seconds), FITTED[1]]
    assert leave_one_out(start, doubled)[FITTED[0].name] == left_out[FITTED[0].name]
    # One card says nothing of links.
    assert fit(start, FITTED[:1]).factors["link"] == pytest.approx(1, abs=1e-6)


def test_solve():
    matrix, x = [[4.0, 1.0, 0.5], [1.0, 3.0, 0.2], [0.5, 0.2, 2.0]], [1.0, -2.0, 3.0]
    right = [sum(a * b for a, b in zip(row, x, strict=True)) for row in matrix]
    assert solve(matrix, right) == pytest.approx(x)
