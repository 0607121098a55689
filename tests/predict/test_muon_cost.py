"""What the planner says of Muon is what the model has and what its update multiplies and holds."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mova_engine.adapters.lora import add_lora, lora_parameters
from mova_engine.backend import get_backend
from mova_engine.config.model import MovaConfig, get_preset
from mova_engine.config.optim_settings import OptimSettings
from mova_engine.config.recipes import load_config
from mova_engine.config.train import LoraSettings
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
from mova_engine.ops.newton_schulz import newton_schulz_batched
from mova_engine.plan.command_line import command
from mova_engine.predict.hardware import get_hardware
from mova_engine.predict.job import Job, Layout, MuonSettings, PlannedRun, training_job
from mova_engine.predict.memory_use import memory
from mova_engine.predict.muon_cost import exchanged_bytes, matrices, matrix_parameters, newton_schulz_flops
from mova_engine.predict.search import plan
from mova_engine.predict.step_time import predict, step_flops
from mova_engine.train.masters import Weights
from mova_engine.train.muon import is_hidden_matrix
from mova_engine.train.optimizer import build_optimizer

OPS = bind(get_backend("cpu"), dtypes=(torch.float32,))
MUON = MuonSettings()


def built(config: MovaConfig, rank: int | None, device: str = "meta") -> Mova:
    model = Mova(config, OPS, device=device)
    if rank is not None:
        model.requires_grad_(False)
        add_lora(model, LoraSettings().targets, rank, float(rank))
        for parameter in lora_parameters(model).values():
            parameter.requires_grad_()
    return model


def pooled(config: MovaConfig) -> MovaConfig:
    return replace(config, bridge=replace(config.bridge, pooled_adaln=True))


@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize(("change", "rank"), [(lambda c: c, None), (lambda c: c, 4), (pooled, None)])
def test_the_matrices_are_those_of_the_model(experts, change, rank):
    config = replace(change(get_preset("nano")), experts=experts)
    run = PlannedRun(Job(config, "full" if rank is None else "lora", lora_rank=rank or 16, muon=MUON))
    with torch.device("meta"):
        model = built(config, rank)
    named = [(n, tuple(p.shape)) for n, p in model.named_parameters() if p.requires_grad]
    found = sorted(shape for name, shape in named if is_hidden_matrix(name, shape))
    assert found == sorted(shape for r, c, n in matrices(run, used=False) for shape in [(r, c)] * n)
    once = sum(r * c for name, (r, c) in ((n, s) for n, s in named if is_hidden_matrix(n, s)) if "dit_2" not in name)
    assert matrix_parameters(run, used=True) == once


def test_a_step_multiplies_what_is_planned():
    run = PlannedRun(Job(get_preset("nano"), "full", muon=MuonSettings(newton_schulz_steps=3, every=2)))
    total = 0
    for r, c, n in matrices(run, used=True):
        with FlopCounterMode(display=False) as counter:
            newton_schulz_batched(torch.randn(1, r, c), steps=3)
        total += n * counter.get_total_flops()
    assert newton_schulz_flops(run) == total / 2
    assert newton_schulz_flops(PlannedRun(Job(get_preset("nano"), "full"))) == 0


def test_a_momentum_takes_four_bytes_a_weight_of_a_matrix():
    config = load_config("nano", optim={"name": "muon", "ema": 0.0})
    sizes = get_preset("nano")
    weights = Weights(built(sizes, None, "cpu"), torch.float32)
    optimizer = build_optimizer(weights.masters, config.optim, OPS)
    for weight in weights.masters:
        weight.tensor.grad = torch.zeros_like(weight.tensor)
    optimizer.step()
    held = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if x.ndim)
    assert memory(PlannedRun(training_job(config, sizes))).device["optimizer's moments"] == held
    plain = training_job(replace(config, optim=OptimSettings()), sizes)
    assert memory(PlannedRun(plain)).device["optimizer's moments"] > 1.6 * held


def test_the_recommended_command_trains_with_muon():
    config = load_config("joint-phase3", optim={"name": "muon", "muon_every": 2, "newton_schulz_dtype": "float32"})
    job = replace(training_job(config, get_preset("mova-360p")), clips=1)
    run = PlannedRun(job, Layout(dp_shard=1, ulysses=8))
    words = " ".join(command(plan(run, get_hardware("h100-80gb"))) or ())
    assert (
        "--optim.name muon --optim.newton-schulz-steps 5 --optim.muon-every 2 --optim.newton-schulz-dtype float32"
        in words
    )
    narrow = replace(run, job=replace(job, muon=MuonSettings(every=2)))
    assert exchanged_bytes(run) == 2 * exchanged_bytes(narrow), "float32 beside bf16"


def test_what_muon_costs_at_full_size():
    """Joint training at 360p on 64 devices: a small part of a step."""
    config, layout = get_preset("mova-360p"), Layout(dp_shard=8, ulysses=8)
    run, plain = (PlannedRun(Job(config, "full", muon=muon), layout) for muon in (MUON, None))
    assert 0.9 < matrix_parameters(run, used=True) / 18.3e9 < 1.1
    hardware = get_hardware("h100-80gb")
    ours, theirs = (predict(each, hardware) for each in (run, plain))
    assert ours.seconds / theirs.seconds == pytest.approx(1.017, abs=0.001)
    assert step_flops(run) == step_flops(plain)
    assert exchanged_bytes(run) == 2 * 63 / 64 * matrix_parameters(run, used=True) / 64 * 2
    assert exchanged_bytes(plain) == 0 == exchanged_bytes(PlannedRun(Job(config, "full", muon=MUON)))
    less = memory(plain).device["optimizer's moments"] - memory(run).device["optimizer's moments"]
    assert less == 4 * matrix_parameters(run, used=False) / 64
    print(
        "muon",
        newton_schulz_flops(run) / step_flops(run)[0],
        ours.parts["optimizer"],
        theirs.parts["optimizer"],
        ours.seconds,
        theirs.seconds,
        exchanged_bytes(run) / 1e9,
    )
