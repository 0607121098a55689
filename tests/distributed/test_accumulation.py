"""Steps of several micro-batches on shared weights: as one process takes them, with no collective that could wait."""

import numpy as np
import pytest
from distributed.accumulation import BRIDGE, MODEL, STEPS, UNITS, accumulated

from mova_engine.config.memory import MemoryConfig
from mova_engine.distributed.stop_signals import ASKED
from mova_engine.predict.job import Job, Layout, PlannedRun
from mova_engine.predict.step_traffic import step_traffic

CLIPS = 8
PLAIN: dict[str, str] = {"checkpointing": "none"}
# Every combination of the two settings.
CASES = [
    PLAIN | {"gathered": gathered, "gradients": gradients}
    for gathered in ("layer", "step")
    for gradients in ("micro-batch", "step")
]


@pytest.fixture(scope="module")
def alone() -> dict:
    (found,) = accumulated([PLAIN], CLIPS)
    return found


def near(found: dict, truth: dict, tolerance: float = 1e-5) -> bool:
    """Whether all weights, and the outputs between the steps, are one process's up to rounding."""
    weights = found["weights"].keys() == truth["weights"].keys() and all(
        np.abs(found["weights"][name] - x).max() <= tolerance * np.abs(x).max() for name, x in truth["weights"].items()
    )
    return weights and found["outputs"] == [pytest.approx(each, rel=1e-4) for each in truth["outputs"]]


def equal(found: dict, other: dict) -> bool:
    """Whether weights and outputs are the same bits."""
    same = all(np.array_equal(x, other["weights"][name]) for name, x in found["weights"].items())
    return same and found["outputs"] == other["outputs"]


def planned_run(case: dict[str, str], replicate: int, micro_batches: int) -> PlannedRun:
    """The same as the planner has it: by two processes to a copy of the weights."""
    layout = Layout(dp_replicate=replicate, dp_shard=2)
    job = Job(MODEL, "full", precision="fp32", clips=micro_batches * layout.data_parallel)
    return PlannedRun(job, layout, MemoryConfig(**case))


def count(found: dict, kind: str, group: str) -> int:
    return found["calls"].get((kind, group), (0, 0))[0]


@pytest.mark.parametrize(("world", "replicate"), [(2, 1), (4, 2)])
def test_an_accumulated_step_sends_what_its_settings_say(worlds, alone, world, replicate):
    """Weights are those of one process; which layers stay gathered changes no bit. Copies sum their gradients once, by
    any settings.
    """
    micro, shard = CLIPS // world, "world" if replicate == 1 else "shard"
    for ranks in worlds(world).run("accumulated", cases=CASES, clips=CLIPS, replicate=replicate):
        for case, found in zip(CASES, ranks, strict=True):
            assert len(found["outputs"]) == STEPS and near(found, alone), case
            assert found["asked"] == [0, ASKED[-1], 0]
            # Losses with what ranks were asked for; beside them the norm, of the rows of a copy.
            assert count(found, "all_reduce", "world") + count(found, "all_reduce", "shard") == 2
            # Without checkpointing a forward gathers each unit, and the backward all but the model's.
            gathers = UNITS if case["gathered"] == "step" else micro * (2 * UNITS - 1)
            scatters = UNITS if case["gradients"] == "step" else micro * UNITS
            assert count(found, "all_gather", shard) == gathers, case
            assert count(found, "reduce_scatter", shard) == scatters, case
            assert count(found, "all_reduce", "copy") == UNITS * (replicate > 1), case
            planned = step_traffic(planned_run(case, replicate, micro))
            for kind, group, size in (
                ("all_gather", shard, planned.gather),
                ("reduce_scatter", shard, planned.scatter),
                ("all_reduce", "copy", planned.replicas),
            ):
                assert found["calls"].get((kind, group), (0, 0))[1] == pytest.approx(size, rel=0.01), (case, kind)
        each_layer, each_layer_summed_once, kept, kept_summed_once = ranks
        assert equal(each_layer, kept) and equal(each_layer_summed_once, kept_summed_once)


@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_layers_that_are_gathered_ahead_are_the_same_bits_of_as_many_exchanges(worlds, checkpointing):
    """Steps of both experts, without the bridge as well; between them outputs that must be of the renewed weights."""
    for dropout in (0.0, 1.0):
        cases = [{"checkpointing": checkpointing, "prefetch": value} for value in ("unit", "weights", "all")]
        for ranks in worlds(2).run("accumulated", cases=cases, clips=4, bridge_dropout=dropout):
            assert all(equal(ranks[0], other) and ranks[0]["calls"] == other["calls"] for other in ranks[1:])


def test_whole_gradients_are_summed_once_beside_the_last_backward(worlds):
    """By two processes, whose sum is the same bits in any order. All but the last bucket go while others are made."""
    clips, bucket = 4, 4096
    for beside, after in worlds(2).run("summed_beside_or_after", clips=clips, bucket=bucket):
        assert equal(beside, after)
        layout = Layout(dp_shard=2, shard=False)
        planned = step_traffic(PlannedRun(Job(MODEL, "full", precision="fp32", clips=clips), layout)).replicas
        # Of a step: the buckets, and apart from them the losses with what ranks were asked for.
        (calls, sent), (calls_after, sent_after) = (x["calls"]["all_reduce", "world"] for x in (beside, after))
        assert sent == sent_after == pytest.approx(planned, rel=0.01) and min(calls, calls_after) > 10
        assert after["in_backward"] == 0 and beside["in_backward"] >= STEPS * (calls - 3)


@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_one_micro_batch_is_the_same_bits_by_any_settings(worlds, checkpointing):
    """And recomputed layers gather nothing where weights stay."""
    cases = [{**case, "checkpointing": checkpointing} for case in CASES]
    for ranks in worlds(2).run("accumulated", cases=cases, clips=2):
        assert all(equal(ranks[0], other) for other in ranks[1:])
        assert [count(found, "all_gather", "world") == UNITS for found in ranks] == [False, False, True, True]
        assert {count(found, "reduce_scatter", "world") for found in ranks} == {UNITS}


def test_micro_batches_without_the_bridge_or_in_bfloat16_sum_once_as_well(worlds):
    """The step's components alone are gathered and summed; what they sum is float32 in either precision."""
    for settings, units in (({"bridge_dropout": 1.0}, UNITS - BRIDGE), ({"dtype": "bfloat16"}, UNITS)):
        for ranks in worlds(2).run("accumulated", cases=[CASES[0], CASES[3]], clips=CLIPS, **settings):
            assert near(ranks[1], ranks[0], tolerance=1e-2 if "dtype" in settings else 1e-5)
            # Without the bridge the model's own unit, its norms, gets no gradient.
            scatters = units - ("bridge_dropout" in settings)
            assert count(ranks[1], "all_gather", "world") == units, settings
            assert [count(found, "reduce_scatter", "world") for found in ranks] == [scatters * CLIPS // 2, scatters]


def test_gradients_that_go_to_the_host_are_summed_over_copies_at_once(worlds, alone):
    """Rows that wait for a later sum would wait on the device, from which offloading keeps them."""
    cases = [PLAIN | {"optimizer": "host"}, PLAIN | {"optimizer": "host", "gradients": "step"}]
    for at_once, once in worlds(4).run("accumulated", cases=cases, clips=CLIPS, replicate=2):
        assert near(at_once, alone) and near(once, alone)
        assert count(at_once, "all_reduce", "copy") == CLIPS // 4 * UNITS
        assert count(once, "all_reduce", "copy") == UNITS
