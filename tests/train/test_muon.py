"""Muon: its weights, its formula, turns, states, and what a run with it refuses."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mova_engine.adapters.lora import add_lora, lora_parameters
from mova_engine.backend import get_backend
from mova_engine.config.model import PRESETS
from mova_engine.config.optim_settings import OptimSettings
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_tensors
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
from mova_engine.train.masters import Weights
from mova_engine.train.metrics import read_metrics
from mova_engine.train.muon import MOMENTUM
from mova_engine.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors

OPS = bind(get_backend("cpu"), dtypes=(torch.float32, torch.bfloat16))
MUON = {"name": "muon"}


@pytest.fixture
def weights():
    torch.manual_seed(1)
    return Weights(Mova(PRESETS["nano"], OPS), torch.float32)


def descend(optimizer, weights, steps=1, seed=0):
    """Steps with random gradients, which are returned."""
    generator, given = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        given.append([torch.randn(w.tensor.shape, generator=generator) for w in weights.masters])
        for weight, gradient in zip(weights.masters, given[-1], strict=True):
            weight.tensor.grad = gradient.clone()
        optimizer.step()
    return given


def orthogonal(x, steps):
    """U p(...p(S)) V^T by a singular value decomposition, in float64."""
    u, s, v = np.linalg.svd(x / np.linalg.norm(x), full_matrices=False)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


def names(optimizer, weights, wanted):
    held = {id(p) for group in optimizer.param_groups if wanted(group["name"]) for p in group["params"]}
    return {weight.name for weight in weights.masters if id(weight.tensor) in held}


def test_matrices_of_layers_are_muons_and_all_else_is_adamws(weights):
    optimizer = build_optimizer(weights.masters, OptimSettings(**MUON, lr=1e-3, bridge_lr=2e-3), OPS)
    matrices = names(optimizer, weights, lambda name: not name.endswith("/adamw"))
    rest = names(optimizer, weights, lambda name: name.endswith("/adamw"))
    assert matrices.isdisjoint(rest) and matrices | rest == {weight.name for weight in weights.masters}
    inside = [n for w in weights.masters if ("blocks." in (n := w.name) or "conditioners." in n)]
    kinds = {name.split(".", 3)[-1] for name in matrices}
    assert matrices == {n for n in inside if n.endswith(".weight") and ".norm" not in n and ".y_norm" not in n}
    assert {"self_attn.q.weight", "cross_attn.o.weight", "ffn.0.weight", "ffn.2.weight", "inner.k.weight"} <= kinds
    for outside in ("patch_embedding", "text_embedding", "time_embedding", "time_projection", "head", "modulation"):
        assert any(outside in name for name in rest) and not any(outside in name for name in matrices)
    peaks = {group["name"]: group["peak_lr"] for group in optimizer.param_groups}
    assert peaks["dual_tower_bridge"] == peaks["dual_tower_bridge/adamw"] == 2e-3 and peaks["video_dit"] == 1e-3


def test_steps_are_the_formula(weights):
    """In float64, with the orthogonal factor by a singular value decomposition; the others take AdamW's steps."""
    settings = OptimSettings(**MUON, lr=0.01, weight_decay=0.1, momentum=0.9, newton_schulz_steps=4)
    before = [w.tensor.detach().double().numpy().copy() for w in weights.masters]
    optimizer = build_optimizer(weights.masters, settings, OPS)
    given = descend(optimizer, weights, steps=3)
    matrices = names(optimizer, weights, lambda name: not name.endswith("/adamw"))
    assert {shape for w in weights.masters if w.name in matrices for shape in [tuple(w.tensor.shape)]} == {
        (96, 96),
        (96, 288),
        (288, 96),
    }
    shown = ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.0.ffn.2", "audio_to_video_conditioners.0.inner.k")
    checked = 0
    for place, weight in enumerate(weights.masters):
        if weight.name not in matrices or not weight.name.endswith(tuple(f"{name}.weight" for name in shown)):
            continue
        expected, moment = before[place], 0.0
        for gradients in given:
            gradient = gradients[place].double().numpy()
            moment = 0.9 * moment + 0.1 * gradient
            update = orthogonal(0.9 * moment + 0.1 * gradient, 4)
            expected = expected * (1 - 0.01 * 0.1) - 0.01 * 0.2 * max(expected.shape) ** 0.5 * update
        np.testing.assert_allclose(weight.tensor.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
        checked += 1
    assert checked == 7
    for w in weights.masters:
        w.tensor.grad = None
    rest = [w for w in weights.masters if w.name not in matrices]
    copies = [
        torch.from_numpy(x).float().requires_grad_() for x, w in zip(before, weights.masters, strict=True) if w in rest
    ]
    adamw = torch.optim.AdamW(copies, lr=0.01, betas=settings.betas, eps=settings.eps, weight_decay=0.1)
    for gradients in given:
        for p, g in zip(copies, (g for g, w in zip(gradients, weights.masters, strict=True) if w in rest), strict=True):
            p.grad = g
        adamw.step()
    for w, p in zip(rest, copies, strict=True):
        torch.testing.assert_close(w.tensor.detach(), p.detach())


@pytest.mark.long  # torch's own imports its compiler
def test_bfloat16_steps_are_those_of_torchs_muon(weights):
    """torch.optim.Muon multiplies in bfloat16. Updates of unit size agree within the rounding of a few products."""
    muon = next(w for w in weights.masters if w.name.endswith("blocks.0.ffn.0.weight"))
    theirs = muon.tensor.detach().clone().requires_grad_()
    start = theirs.detach().clone()
    settings = OptimSettings(**MUON, lr=0.01, weight_decay=0.1)
    ours = build_optimizer(weights.masters, replace(settings, newton_schulz_dtype="bfloat16"), OPS)
    published = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for gradients in descend(ours, weights, steps=3):
        theirs.grad = gradients[weights.masters.index(muon)].clone()
        published.step()
    moved, expected = muon.tensor.detach() - start, theirs.detach() - start
    assert expected.square().mean().sqrt() == pytest.approx(3 * 0.2 * 0.01, rel=0.35)
    assert (moved - expected).norm() < 2**-6 * expected.norm()


def test_in_turns_half_of_the_matrices_move_twice_as_far(weights):
    settings = {**MUON, "lr": 0.01, "weight_decay": 0.0}
    twins = copy.deepcopy(weights.masters)
    each = build_optimizer(weights.masters, OptimSettings(**settings), OPS)
    turns = build_optimizer(twins, OptimSettings(**settings, muon_every=2), OPS)
    before = [w.tensor.detach().clone() for w in twins]
    matrices = names(each, weights, lambda name: not name.endswith("/adamw"))
    moved = []
    for step in range(2):
        start = [w.tensor.detach().clone() for w in weights.masters]
        gradients = descend(each, weights, seed=step)[0]
        for twin, gradient in zip(twins, gradients, strict=True):
            twin.tensor.grad = gradient.clone()
        turns.step()
        moved.append(0)
        for one, its_start, twin, its in zip(weights.masters, start, twins, before, strict=True):
            state = turns.state[twin.tensor]
            if one.name not in matrices:
                assert torch.equal(one.tensor, twin.tensor)
                continue
            assert torch.equal(state[MOMENTUM], each.state[one.tensor][MOMENTUM]), "it follows every gradient"
            if not torch.equal(twin.tensor, its):
                torch.testing.assert_close(twin.tensor - its, 2 * (one.tensor - its_start), rtol=1e-4, atol=1e-6)
                its.copy_(twin.tensor.detach())
                moved[-1] += 1
    assert moved == [len(matrices) // 2] * 2


def test_a_matrix_alone_rests_in_every_other_step(weights):
    alone = next(w for w in weights.masters if w.name.endswith("ffn.0.weight"))
    optimizer = build_optimizer([alone], OptimSettings(**MUON, lr=0.01, muon_every=2), OPS)
    moved = []
    for _ in range(4):
        before = alone.tensor.detach().clone()
        alone.tensor.grad = torch.randn_like(before)
        optimizer.step()
        moved.append(not torch.equal(alone.tensor, before))
    assert moved == [False, True, False, True]


@pytest.mark.parametrize("every", [1, 2])
def test_a_state_is_restored_to_the_bit(weights, every):
    """As a checkpoint holds it, with an expert's worth of weights that had no gradient yet."""
    settings = OptimSettings(**MUON, lr=0.01, muon_every=every)
    optimizer = build_optimizer(weights.masters, settings, OPS)
    for step in range(3):
        for weight in weights.masters:
            resting = weight.component == "audio_dit" and step < 2
            weight.tensor.grad = None if resting else torch.full_like(weight.tensor, 0.1 + step).normal_()
        optimizer.step()
    saved = {name: x.clone() for name, x in optimizer_tensors(optimizer, weights.masters).items()}
    moments = {key.rpartition(":")[2] for key in saved}
    assert moments == {"step", MOMENTUM, "exp_avg", "exp_avg_sq"}
    twins = copy.deepcopy(weights.masters)
    other = build_optimizer(twins, settings, OPS)
    load_optimizer_tensors(other, twins, saved)
    for one, twin in zip(weights.masters, twins, strict=True):
        one.tensor.grad, twin.tensor.grad = torch.ones_like(one.tensor), torch.ones_like(one.tensor)
    optimizer.step(), other.step()
    assert all(torch.equal(one.tensor, twin.tensor) for one, twin in zip(weights.masters, twins, strict=True))
    again = optimizer_tensors(other, twins)
    for name, x in optimizer_tensors(optimizer, weights.masters).items():
        assert torch.equal(again[name], x), name


def test_adapters_are_matrices_too():
    torch.manual_seed(1)
    model = Mova(PRESETS["nano"], OPS)
    model.requires_grad_(False)
    add_lora(model, ("q", "ffn.0"), rank=4, alpha=4.0)
    for parameter in lora_parameters(model).values():
        parameter.requires_grad_()
    weights = Weights(model, torch.float32)
    settings = OptimSettings(**MUON, lr=0.01, weight_decay=0.0, lora_plus=4.0)
    optimizer = build_optimizer(weights.masters, settings, OPS)
    groups = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert {"video_dit", "video_dit/lora_B"} <= groups.keys() and not any("adamw" in name for name in groups)
    b = next(w.tensor for w in weights.masters if w.name.endswith("ffn.0.lora_B.weight"))
    for weight in weights.masters:  # as in a first step: B is zero, and so is A's gradient
        weight.tensor.grad = torch.zeros_like(weight.tensor)
    b.grad = torch.randn_like(b)
    start = {weight.name: weight.tensor.detach().clone() for weight in weights.masters}
    optimizer.step()
    assert all(torch.equal(w.tensor, start[w.name]) for w in weights.masters if w.tensor is not b)
    moved = b.detach() / (0.01 * 0.2 * max(b.shape) ** 0.5)
    assert ((s := torch.linalg.svdvals(moved)) > 0.5).all() and (s < 1.3).all(), "B moves alike in all of its rank"


def test_eight_bit_moments_are_adamws(small):
    with pytest.raises(MovaError, match="optim.moments 8bit holds AdamW's two moments: Muon keeps one, in float32"):
        small(optim={**MUON, "moments": "8bit"})


def losses(run):
    return [row["loss"] for row in read_metrics(run.config.folder / "metrics.jsonl") if "loss" in row]


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_goes_on_to_the_bit(small, ran, dtype):
    through = ran(small("through", optim=MUON, dtype=dtype, checkpoint={"every": 2}))
    middle = through.config.folder / "checkpoints" / "step-000002"
    state, _ = read_tensors(middle / "training" / "optimizer.safetensors")
    assert {name.rpartition(":")[2] for name in state if ".ffn.0.weight:" in name} == {"step", MOMENTUM}
    again = ran(small("again", optim=MUON, dtype=dtype, resume=str(middle)))
    assert again.status == 0 and losses(again) == losses(through)[2:]
    plain = ran(small("plain", dtype=dtype))
    assert losses(plain)[0] == losses(through)[0] and losses(plain) != losses(through)
    with pytest.raises(MovaError, match="holds the state of muon: give --optim.name muon, or --out for a new run"):
        ran(small("other", dtype=dtype, resume=str(middle)))
