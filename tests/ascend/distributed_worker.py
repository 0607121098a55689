"""One rank of the distributed checks, started by torchrun; rank 0 writes what it saw to the path it is given."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mova_engine.backend import get_backend
from mova_engine.config.model import VideoDiTConfig
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.gradients import sum_gradients
from mova_engine.models.modality import Modality
from mova_engine.models.video_dit import VideoDiT
from mova_engine.ops import OPERATORS, bind, bind_operator

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
CONFIG = VideoDiTConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16, freq_dim=16)


def collectives(device: torch.device, dtype: torch.dtype) -> dict[str, list]:
    """Every collective that training needs, on small numbers that tell the ranks apart."""
    full = partial(torch.full, (2,), device=device, dtype=dtype)
    own = full(float(RANK + 1))
    found = {}
    for name in ("SUM", "AVG", "MAX", "MIN"):
        x = own.clone()
        dist.all_reduce(x, op=getattr(dist.ReduceOp, name))
        found[f"all_reduce {name}"] = x.tolist()
    x = own.clone()
    dist.broadcast(x, 1)
    found["broadcast"] = x.tolist()
    gathered = own.new_empty(2 * SIZE)
    dist.all_gather_into_tensor(gathered, own)
    found["all_gather"] = gathered.tolist()
    scattered = own.new_empty(2)
    ranks = torch.arange(2.0 * SIZE, device=device).to(dtype)
    dist.reduce_scatter_tensor(scattered, ranks + RANK)
    found["reduce_scatter"] = scattered.tolist()
    exchanged = torch.empty_like(ranks)
    dist.all_to_all_single(exchanged, ranks + 10 * RANK)
    found["all_to_all"] = exchanged.tolist()
    # Rank i sends i + 1 numbers to everybody: shards of unequal length.
    uneven = own.new_empty(sum(range(1, SIZE + 1)))
    dist.all_to_all_single(
        uneven, own.new_full((SIZE * (RANK + 1),), RANK), list(range(1, SIZE + 1)), [RANK + 1] * SIZE
    )
    found["all_to_all uneven"] = uneven.tolist()
    received = torch.empty_like(own)
    messages = [
        dist.P2POp(dist.isend, own, (RANK + 1) % SIZE),
        dist.P2POp(dist.irecv, received, (RANK - 1) % SIZE),
    ]
    for work in dist.batch_isend_irecv(messages):
        work.wait()
    found["ring"] = received.tolist()
    return found


def groups(device: torch.device) -> dict[str, list]:
    """A mesh of two by two: data-parallel shards, context parallelism."""
    mesh = init_device_mesh(device.type, (2, 2), mesh_dim_names=("shard", "context"))
    found = {}
    for name in mesh.mesh_dim_names:
        x = torch.ones(1, device=device) * (RANK + 1)
        dist.all_reduce(x, group=mesh.get_group(name))
        found[f"mesh {name}"] = x.tolist()
    dist.barrier()
    objects = [None] * SIZE
    dist.all_gather_object(objects, {"rank": RANK})
    found["objects"] = [x["rank"] for x in objects]
    return found


def build(ops, device: torch.device) -> VideoDiT:
    torch.manual_seed(1)
    tower = VideoDiT(CONFIG, ops)
    with torch.no_grad():
        for p in tower.parameters():
            p.normal_(0, 0.1)
    return tower.to(device)


def train(backend, dtype: torch.dtype, sharded: bool) -> dict[str, list[float]]:
    """Three steps of a small tower on one batch per rank; losses are means over all ranks."""
    device = backend.device(RANK)
    ops = bind(backend)
    tower = build(ops, device)
    if sharded:
        mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for block in tower.blocks:
            fully_shard(block, mp_policy=mixed)
        fully_shard(tower, mp_policy=mixed)
    optimizer = ops.adamw(tower.parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    losses, norms = [], []
    for step in range(3):
        ranks = [RANK] if sharded else range(SIZE)
        loss = sum(_loss(tower, step, rank, device) for rank in ranks) / len(ranks)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        norm = norm.full_tensor() if sharded else norm
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.detach().clone()
        if sharded:
            dist.all_reduce(loss, op=dist.ReduceOp.AVG)
        losses.append(loss.item()), norms.append(norm.item())
    return {"losses": losses, "norms": norms}


def _loss(tower: VideoDiT, step: int, rank: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    latents = torch.randn(1, CONFIG.in_dim, 2, 4, 6, generator=generator).to(device)
    context = torch.randn(1, 5, CONFIG.text_dim, generator=generator).to(device)
    return tower(Modality(latents, torch.tensor([500.0]), context)).float().square().mean()


def refusal_of_fused_adamw(backend) -> str:
    """What NpuFusedAdamW's adapter says to sharded parameters."""
    tower = build(bind(backend), backend.device(RANK))
    fully_shard(tower)
    make, _ = bind_operator(OPERATORS["adamw"], backend, "npu-fused")
    try:
        make(tower.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    except TypeError as error:
        return str(error)
    return ""


def reduction(device: torch.device) -> dict[str, list]:
    """What the reduction of gradients calls, in order, and the sums that come of it."""
    calls = []
    before = torch.npu.synchronize, dist.all_reduce

    def noted(name, function):
        return lambda *args, **kwargs: (calls.append(name), function(*args, **kwargs))[1]

    torch.npu.synchronize, dist.all_reduce = noted("wait", before[0]), noted("all_reduce", before[1])
    gradients = [torch.full((n,), float(RANK), device=device) for n in (1, 2)]
    try:
        sum_gradients(gradients, Group(dist.group.WORLD, device), divisor=2)
    finally:
        torch.npu.synchronize, dist.all_reduce = before
    return {"calls": calls, "sums": [g.tolist() for g in gradients]}


def main(path: Path) -> None:
    backend = get_backend("npu")
    device = backend.device(RANK)
    torch.npu.set_device(device)
    dist.init_process_group(backend.collectives)
    found = {
        "float32": collectives(device, torch.float32),
        "bfloat16": collectives(device, torch.bfloat16),
        "groups": groups(device),
        "fsdp2": train(backend, torch.float32, sharded=True),
        "fsdp2-bfloat16": train(backend, torch.bfloat16, sharded=True),
        "single": train(backend, torch.float32, sharded=False),
        "reduction": reduction(device),
        "refusal": refusal_of_fused_adamw(backend),
    }
    if RANK == 0:
        path.write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
