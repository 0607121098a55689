"""Who is right, what shrinks when a device is too small, and what the FLOPs and bytes of a job are."""

import pytest
import torch

from mova_engine.bench.candidates import scaled_down
from mova_engine.bench.jobs import block_job, bridge_job, chain_job, stack_config, stack_job, step_job
from mova_engine.bench.passes import bytes_moved, flops
from mova_engine.bench.smaller_sizes import small_config, smaller_config
from mova_engine.bench.workloads import SEED, convert, judge
from mova_engine.config.model import get_preset
from mova_engine.errors import MovaError
from mova_engine.ops import bind
from mova_engine.predict.flops import training_flops

F32 = torch.float32


def test_errors_are_judged_against_float64_and_the_references_own():
    truth = {"out0": torch.ones(100), "grad.w": torch.ones(100)}
    own = {"out0": torch.full((100,), 1.0001), "grad.w": torch.full((100,), 1.0001)}
    near = {"out0": torch.full((100,), 1.00015), "grad.w": torch.full((100,), 1.0003)}
    _, error, allowed = judge(near, truth, own, F32)
    assert error <= allowed
    far = near | {"grad.w": torch.full((100,), 1.001)}
    assert judge(far, truth, own, F32)[:2] == ("grad.w", pytest.approx(1e-3, rel=0.01))


def test_a_missing_or_infinite_tensor_is_never_right():
    truth = {"out0": torch.ones(3)}
    for found in ({}, {"out0": torch.tensor([1.0, float("nan"), 1.0])}, {"out0": torch.ones(4)}):
        _, error, allowed = judge(found, truth, truth, F32)
        assert not error <= allowed


def test_conversion_leaves_tables_alone_but_for_float64():
    tensors = {
        "x": torch.ones(2, dtype=torch.bfloat16),
        "table": torch.ones(2),
        "index": torch.ones(2, dtype=torch.long),
    }
    wide = convert(tensors, torch.bfloat16, F32)
    assert [x.dtype for x in wide.values()] == [F32, F32, torch.long]
    same = convert(tensors, torch.bfloat16, torch.bfloat16)
    assert [x.dtype for x in same.values()] == [torch.bfloat16, F32, torch.long]
    truth = convert(tensors, torch.bfloat16, torch.float64)
    assert [x.dtype for x in truth.values()] == [torch.float64, torch.float64, torch.long]


def test_sides_share_the_memory_of_their_weights(backend):
    job = step_job(small_config(get_preset("nano")))
    tensors = job.draw(torch.Generator().manual_seed(SEED), backend.device(), F32)
    ours, theirs = (job.work(bind(backend, choice), tensors) for choice in (None, "reference"))
    for name, p in ours.parameters.items():
        assert p.data_ptr() == theirs.parameters[name].data_ptr() == tensors[name].data_ptr()


def test_a_stack_leaves_the_first_block_s_gradients_in_its_one_buffer(backend):
    config = small_config(get_preset("nano"))
    stack, plain = stack_job(config, "none"), step_job(stack_config(config), bridge=False)
    tensors = stack.draw(torch.Generator().manual_seed(SEED), backend.device(), F32)
    found, expected = (job.work(bind(backend), tensors).results() for job in (stack, plain))
    missing = expected.keys() - found.keys()
    assert {name.split(".")[3] for name in missing} == {"1", "2"}
    assert all("video_dit.blocks." in name for name in missing)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_flops_of_parts_add_up_to_the_step():
    """Blocks and bridge layers are a training step without embeddings and heads."""
    config = get_preset("bench-mid")
    parts = 6 * block_job(config, "video").model_flops + 4 * block_job(config, "audio").model_flops
    parts += 4 * bridge_job(config).model_flops
    whole = step_job(config).model_flops
    assert whole == training_flops(config).model
    assert 0.97 * whole < parts < whole
    assert block_job(config, "video").hardware_flops > block_job(config, "video").model_flops


def test_bytes_of_the_chain():
    assert chain_job(10, 128, dtype=torch.bfloat16).moved == 43 * 10 * 128 * 2


@pytest.mark.parametrize(
    ("operator", "gate", "passes"),
    [("rms_norm", ..., (2, 3)), ("gate_residual", 1, (3, 3)), ("gate_residual", None, (3, 0))]
    + [("gate_residual_norm", 1, (4, 6)), ("gate_residual_norm", None, (4, 4)), ("attention", ..., (0, 0))],
)
def test_bytes_of_operators(operator, gate, passes):
    inputs = {"x": torch.zeros(2, 3, 5)} | ({} if gate is ... else {"gate": gate})
    assert bytes_moved(operator, inputs) == tuple(p * 30 * 4 for p in passes)


def test_flops_of_operators():
    x, w, a, b = torch.zeros(2, 3, 5), torch.zeros(7, 5), torch.zeros(2, 5), torch.zeros(7, 2)
    assert flops("linear_gelu", {"x": x, "weight": w}) == (2 * 6 * 35, 4 * 6 * 35)
    assert flops("lora_linear", {"x": x, "weight": w, "lora_a": a, "lora_b": b})[0] == 2 * 6 * (35 + 10 + 14)
    q, k = torch.zeros(1, 3, 2, 4), torch.zeros(1, 5, 2, 4)
    assert flops("attention", {"q": q, "k": k}) == (4 * 3 * 5 * 8, 8 * 3 * 5 * 8)
    assert flops("rms_norm", {"x": x}) == (0, 0)


@pytest.mark.long
def test_too_little_memory_takes_a_smaller_size_and_says_so():
    def run(size):
        if size > 10:
            raise torch.OutOfMemoryError
        return {"rows": size}

    row = scaled_down(run, 64, lambda n: n // 2 or None, lambda n: {"rows": n})
    assert row == {
        "rows": 8,
        "scaled": {"asked": {"rows": 64}, "measured": {"rows": 8}, "why": "the device ran out of memory"},
    }
    assert "scaled" not in scaled_down(run, 9, lambda n: None, lambda n: {"rows": n})
    with pytest.raises(MovaError, match="out of memory even at the smallest size"):
        scaled_down(run, 64, lambda n: None, lambda n: {"rows": n})


def test_smaller_and_smaller_configurations_end():
    config, seen = get_preset("mova-360p"), []
    while config is not None:
        seen.append((config.video.num_layers, config.audio.num_layers, config.clip.frames))
        config = smaller_config(config, layers=True)
    assert seen[:2] == [(40, 30, 193), (20, 15, 193)]
    assert seen[-1] == (1, 1, 1)
    assert smaller_config(get_preset("mova-360p"), layers=False).clip.frames == 97
