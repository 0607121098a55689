"""What operators cost is read from what a machine binds: passes by hand, every implementation, packages that matter."""

from dataclasses import replace
from itertools import product

import pytest

from mova_engine.config.memory import PLAIN
from mova_engine.config.model import get_preset
from mova_engine.ops.declarations import REFERENCE
from mova_engine.ops.machine import PACKAGES, Machine, assumed_machine
from mova_engine.ops.table import OPERATORS
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.hardware import get_hardware, hardware_names
from mova_engine.predict.job import TASKS, Job, Layout, PlannedRun
from mova_engine.predict.operator_cost import ROWS, OperatorCost, attention_rates, bound
from mova_engine.predict.step_time import predict
from source_tree import ROOT

M360 = get_preset("mova-360p")
VIDEO, AUDIO = M360.video, M360.audio
RATIO = VIDEO.ffn_dim / VIDEO.dim
WIDTH = AUDIO.dim / VIDEO.dim


def _cost(machine, task, fp8=False, recomputed=False):
    return OperatorCost(machine, Job(M360, task), fp8, recomputed)


@pytest.mark.parametrize("machine", [assumed_machine("cuda", "sm90"), assumed_machine("npu", "910a2", ["triton"])])
def test_passes_of_fused_kernels(machine):
    """By hand: 18 forward and 25 backward of a block's norms and residuals, 6.6 and 4.9 of a bridge's."""
    forward, backward = _cost(machine, "lora").block(VIDEO)
    linears = 7 + RATIO
    assert forward == pytest.approx(18 + 2 * RATIO + 2 * linears)
    # Of q, k and v the gradients of their input are summed.
    assert backward == pytest.approx(25 + 6 + 3 * RATIO + 2 * linears)
    forward, backward = _cost(machine, "full").block(VIDEO)
    assert forward == pytest.approx(18 + 2 * RATIO)
    # Norms and GELU again; sums of seven layers' biases.
    assert backward == pytest.approx(25 + 6 + (2 + 3) * RATIO + 7)
    assert _cost(machine, "full").bridge(VIDEO.dim, AUDIO.dim) == pytest.approx(
        (4 + 2 + 2 * WIDTH, 4 + 3 + 3 * WIDTH + 3 + 2 + 2 + 2 * WIDTH)
    )
    # Layers that are recomputed compute nothing a third time; with frozen gates they add an update once more.
    assert _cost(machine, "full", recomputed=True).block(VIDEO)[1] == pytest.approx(25 + 3 * RATIO + 7)
    lean = _cost(machine, "lora", recomputed=True).block(VIDEO)[1]
    assert lean == pytest.approx(_cost(machine, "lora").block(VIDEO)[1] + 3)
    sampled = _cost(machine, "inference")
    gelu = 0 if machine.kind == "cuda" else 2
    assert sampled.block(VIDEO)[0] == pytest.approx(18 + gelu * RATIO)


def test_passes_of_compositions_on_ascend():
    forward, backward = _cost(assumed_machine("npu", "910a2"), "full").block(VIDEO)
    assert forward == pytest.approx(2 * 12 + 13 + 2 + 4 + 13 + 2 * RATIO)
    assert backward == pytest.approx(2 * 19 + 9 + 3 + 6 + 9 + (2 + 2 + 2) + (2 + 3 + 1) * RATIO + 7)


@pytest.mark.parametrize(
    ("packages", "forward", "backward"), [([], 30, 24), (["triton"], 12, 16)], ids=["torch_npu", "triton-ascend"]
)
def test_a_block_s_residuals_with_norms_on_ascend(packages, forward, backward):
    cost = _cost(assumed_machine("npu", "910a2", packages), "full")
    calls = ("gate_residual_norm", True), ("gate_residual_norm_modulate", False), ("gate_residual_norm_modulate", True)
    passes = [cost.passes(name, gate) for name, gate in calls]
    assert [sum(each) for each in zip(*passes, strict=True)] == [forward, backward]


def test_weights_in_fp8_quantise_rows_beside():
    machine = assumed_machine("cuda", "sm90")
    plain, fp8 = (_cost(machine, "lora", fp8).block(VIDEO) for fp8 in (False, True))
    assert [b - a for a, b in zip(plain, fp8, strict=True)] == pytest.approx([1.5 * (7 + RATIO)] * 2)


def test_everything_that_may_be_chosen_declares_what_it_costs():
    machines = [get_hardware(name).machine for name in hardware_names()]
    machines += [replace(m, packages=frozenset({*m.packages, *PACKAGES})) for m in machines]
    machines += [replace(m, packages=frozenset()) for m in machines]
    products = ("linear_gelu", "lora_linear")
    for machine, training, precision in product(machines, (True, False), ("bf16", "fp32")):
        chosen = bound(machine, training, precision)
        for name in (*ROWS, *products):
            assert OPERATORS[name].passes(chosen[name]) is not None, (machine, name, chosen[name])
        for name in ("attention", "attention_lse", "attention_backward"):
            if chosen[name] != REFERENCE:
                entry = next(e for e in OPERATORS[name].implementations if e.name == chosen[name])
                assert entry.rate(machine) is not None, (machine, name, chosen[name])


@pytest.mark.parametrize("name", hardware_names())
def test_no_rate_is_beyond_the_peak_and_kept_attention_is_the_same_family(name):
    hardware = get_hardware(name)
    for task in TASKS:
        job = Job(M360, task)
        plain, kept = attention_rates(hardware, job), attention_rates(hardware, job, kept=True)
        assert all(0 < rate < hardware.peak_flops("bf16") for rate in plain) and plain == kept


def test_rates_are_those_that_were_published():
    h100, job = get_hardware("h100-80gb"), Job(M360, "lora")
    assert attention_rates(h100, job) == pytest.approx((648e12, 561e12))
    assert attention_rates(h100.with_packages([]), job) == pytest.approx((595e12, 516e12))
    assert attention_rates(h100, job, kernel="flash-attn-2") == pytest.approx((370e12, 322e12))
    assert attention_rates(get_hardware("910a2"), job, kernel="flash-attn-2")[0] == pytest.approx(150.8e12)
    assert attention_rates(calibrated("910a2"), job)[0] < 150.8e12


def test_packages_decide_a_step():
    run = PlannedRun(Job(M360, "lora"), Layout(), replace(PLAIN["lora"], frozen="fp8"))
    h100 = get_hardware("h100-80gb")
    with_flash3, with_cudnn = (predict(run, h100.with_packages(p)).parts for p in (["flash-attn-3"], []))
    assert with_flash3["attention"] < 0.95 * with_cudnn["attention"]
    ascend = get_hardware("910a2")
    run = PlannedRun(Job(M360, "lora"), Layout(dp_shard=2, ulysses=4))
    composed, triton = (predict(run, ascend.with_packages(p)).parts["memory-bound passes"] for p in ([], ["triton"]))
    assert triton < 0.55 * composed
    bare = replace(h100, machine=Machine("cuda", (9, 0)))
    assert bound(bare.machine, True, "bf16")["norm_modulate"] == REFERENCE
    assert predict(run, bare).parts["memory-bound passes"] > 2 * predict(run, h100).parts["memory-bound passes"]


def test_the_page_s_table_is_what_is_planned():
    machines = assumed_machine("cuda", "sm90"), assumed_machine("npu", "910a2"), Machine("cuda", (9, 0))
    lines = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8").splitlines()
    begin = lines.index("| operators | forward | backward | bridge |") + 2
    for line, machine in zip(lines[begin:], machines, strict=False):
        cost = _cost(machine, "lora")
        (forward, backward), bridge = cost.block(VIDEO), cost.bridge(VIDEO.dim, AUDIO.dim)
        assert line.endswith(f"| {forward:.1f} | {backward:.1f} | {bridge[0]:.1f}, {bridge[1]:.1f} |")
