"""What the planner has of fp8 products of trained layers: passes by hand, rates, memory, commands, refusals."""

from dataclasses import replace

import pytest

from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import load_config
from mova_engine.errors import MovaError
from mova_engine.ops.machine import assumed_machine
from mova_engine.plan.command_line import command
from mova_engine.predict.flops import MatrixProduct, operations
from mova_engine.predict.fp8_cost import in_fp8
from mova_engine.predict.hardware import get_hardware
from mova_engine.predict.job import Job, Layout, PlannedRun, training_job
from mova_engine.predict.memory_use import memory
from mova_engine.predict.operator_cost import OperatorCost
from mova_engine.predict.search import best
from mova_engine.predict.step_time import predict

M360 = get_preset("mova-360p")
RATIO = M360.video.ffn_dim / M360.video.dim
H100 = get_hardware("h100-80gb")
WHOLE, SHARED = Layout(dp_shard=8), Layout(dp_shard=2, ulysses=4)


def _run(fp8, layout=WHOLE, **policy):
    return PlannedRun(Job(M360, fp8=fp8), layout, MemoryConfig(**{"checkpointing": "selective", **policy}))


@pytest.mark.parametrize("recomputed", [False, True])
def test_passes_by_hand(recomputed):
    machine = assumed_machine("cuda", "sm90")
    plain, fp8 = (
        OperatorCost(machine, Job(M360, fp8=used), False, recomputed).block(M360.video) for used in (False, True)
    )
    # Rows of seven inputs and one of the hidden width; of as many outputs rows and columns, and the inputs' columns.
    assert fp8[0] - plain[0] == pytest.approx(1.5 * (7 + RATIO))
    # Gradients of two inputs of three layers are summed; norms and GELU are kept, where they would be computed again.
    again = 0 if recomputed else 2 + 2 + 2 + 2 * RATIO
    assert fp8[1] - plain[1] == pytest.approx(8.5 * (7 + RATIO) + 2 * 3 - again)


def test_products_of_blocks_and_bridge_are_twice_as_fast_where_the_device_says_so():
    plain, fp8 = (predict(_run(used), H100) for used in (False, True))
    assert 0.5 < fp8.parts["GEMM"] / plain.parts["GEMM"] < 0.56
    assert fp8.parts["attention"] == plain.parts["attention"]
    assert fp8.parts["memory-bound passes"] > 1.3 * plain.parts["memory-bound passes"]
    assert fp8.model_flops == plain.model_flops and fp8.seconds < plain.seconds
    with pytest.raises(MovaError, match="910a2 has no fp8 arithmetic; it has bf16, fp32"):
        predict(_run(True), get_hardware("910a2"))


def test_other_products_and_sizes_that_do_not_fit_are_not():
    run = _run(True)
    found = {in_fp8(op, run) for op in operations(M360, run.job.components) if getattr(op, "in_block", False)}
    assert found == {True}
    assert not any(in_fp8(op, run) for op in operations(M360, run.job.components) if not getattr(op, "in_block", False))
    assert not in_fp8(MatrixProduct("video_dit", "x", 8, 24, 32), run)
    assert not any(in_fp8(op, _run(False)) for op in operations(M360, run.job.components))


@pytest.mark.parametrize(("layout", "more"), [(WHOLE, 4.0), (SHARED, 1.3)])
def test_copies_on_the_way_are_counted(layout, more):
    plain, fp8 = (_run(used, layout) for used in (False, True))
    bytes_a_pass = plain.local_video + plain.local_audio
    assert memory(fp8).total - memory(plain).total == pytest.approx(more * bytes_a_pass)
    plain, fp8 = (_run(used, layout, checkpointing="none") for used in (False, True))
    kept = [memory(run).device["all activations"] for run in (plain, fp8)]
    assert kept[1] - kept[0] == pytest.approx(40 * (3 + RATIO) * bytes_a_pass)


def test_a_recipe_says_it_and_a_plans_command_too():
    settings = {"dtype": "bfloat16", "model": {"preset": "mova-360p"}, "fp8": {"products": "device"}}
    config = load_config("joint-phase2", **settings)
    assert training_job(config, M360).fp8
    assert not training_job(replace(config, fp8=replace(config.fp8, products="emulated")), M360).fp8
    (plan, *_) = best(Job(M360, fp8=True, clips=64), 64, H100)
    words = command(plan)
    assert words[words.index("--fp8.products") + 1] == "device"


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(M360, "lora", fp8=True), "fp8 products are of weights that are trained"),
        (Job(M360, precision="fp32", fp8=True), "fp8 products give bf16"),
    ],
)
def test_jobs_that_no_run_can_have_are_refused(job, message):
    with pytest.raises(MovaError, match=message):
        PlannedRun(job)
