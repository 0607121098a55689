"""Muon on rows that ranks share, beside the same steps on whole matrices."""

import torch
import torch.distributed as dist
from distributed.device import backend, device

from mova_engine.config.mesh import MeshShape
from mova_engine.config.optim_settings import OptimSettings
from mova_engine.distributed.collectives import open_group
from mova_engine.distributed.fsdp import LocalShard, rows_of
from mova_engine.distributed.processes import read_launch, start_processes
from mova_engine.ops import bind
from mova_engine.train.muon import is_hidden_matrix
from mova_engine.train.optimizer import NamedWeight, build_optimizer

# More matrices than ranks and fewer; rows that ranks do not divide, fewer than ranks, and a vector that is AdamW's.
SHAPES = {
    **{f"video_dit.blocks.{i}.self_attn.q.weight": (12, 12) for i in range(7)},
    **{f"video_dit.blocks.{i}.ffn.0.weight": (29, 12) for i in range(3)},
    "video_dit.blocks.0.ffn.2.weight": (12, 29),
    "audio_dit.blocks.0.self_attn.q.lora_A.weight": (3, 12),
    "audio_dit.blocks.0.self_attn.q.bias": (12,),
}
STEPS = 4


def muon_rows(every: int = 1) -> tuple[float, int, int]:
    """(largest difference of this rank's rows of any weight from one process's, bytes that it sent, what the formula
    says) after some steps.
    """
    launch = read_launch()
    start_processes(backend(), launch, MeshShape(dp_shard=launch.world), 60)
    group = open_group(dist.group.WORLD, device())
    ops = bind(backend(), dtypes=(torch.float32,))
    settings = OptimSettings(name="muon", lr=0.1, weight_decay=0.1, muon_every=every)
    generator = torch.Generator().manual_seed(3)
    whole, own = [], []
    for name, shape in SHAPES.items():
        x = torch.randn(shape, generator=generator).to(device())
        first, count = rows_of(shape[0], group.size, group.rank)
        whole.append(NamedWeight(name, LocalShard(x, shape)))
        own.append(NamedWeight(name, LocalShard(x[first : first + count].clone(), shape, first)))
    optimizers = build_optimizer(whole, settings, ops), build_optimizer(own, settings, ops, group=group)
    sent = sum(group.sent.values())
    for _ in range(STEPS):
        for one, rows in zip(whole, own, strict=True):
            one.tensor.grad = torch.randn(one.piece.shape, generator=generator).to(device())
            rows.tensor.grad = one.tensor.grad[rows.piece.rows].clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = [(one.tensor[rows.piece.rows] - rows.tensor) for one, rows in zip(whole, own, strict=True)]
    worst = max(float(x.abs().max()) for x in moved if x.numel())
    return worst, sum(group.sent.values()) - sent, _formula(group.rank, group.size, every)


def _formula(rank: int, ranks: int, every: int) -> int:
    """Of each matrix: its rows to the rank that owns it, and of those that this rank owns the others' rows back."""
    sent, groups = 0, {}
    for name, shape in SHAPES.items():
        if is_hidden_matrix(name, shape):
            groups.setdefault((name.split(".")[0], shape), []).append(name)
    for (_, (rows, columns)), names in groups.items():
        mine = rows_of(rows, ranks, rank)[1]
        for step in range(1, STEPS + 1):
            moving = [name for name in names if (step + _place(name)) % every == 0]
            owned = rows_of(len(moving), ranks, rank)[1]
            sent += 4 * columns * (mine * (len(moving) - owned) + owned * (rows - mine))
    return sent


def _place(name: str) -> int:
    """Of a matrix among those of its component."""
    component = name.split(".")[0]
    return [n for n, shape in SHAPES.items() if n.startswith(component) and is_hidden_matrix(n, shape)].index(name)
