"""What the processes of a World do. Each function runs in all ranks at once; the reference runs in rank 0 alone."""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from distributed.accumulation import accumulated, summed_beside_or_after  # noqa: F401 (called by name)
from distributed.device import backend, device
from distributed.keeping import (  # noqa: F401 (called by name)
    changed_by_checkpointing,
    changed_by_compiling,
    kept_bytes,
)
from distributed.muon_rows import muon_rows  # noqa: F401 (called by name)
from distributed.overlap import changed_by_head_chunks, exchanged_in_order  # noqa: F401 (called by name)
from distributed.runs import (  # noqa: F401 (called by name)
    both_fail,
    clips_taken,
    contents_taken,
    encoded_in_rounds,
    exchanges_between_steps,
    process_id,
    resaved,
    run_shared,
    watched,
    without_a_picture,
)
from distributed.sampling import (  # noqa: F401 (called by name)
    commanded,
    error_of_rows,
    error_of_wan_rows,
    errors_of_clips,
    errors_of_sampling,
)
from distributed.small import COUNTED, HEADS, backward, both, build, build_sharded, clips, processes
from distributed.violations import conditions_handed_on, offloaded_step, violated  # noqa: F401 (called by name)
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor

from mova_engine.config.mesh import MeshShape
from mova_engine.config.recipes import load_config
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.context import ContextParallel
from mova_engine.distributed.counted_traffic import count_scheme
from mova_engine.distributed.fsdp import clip_grad_norm
from mova_engine.distributed.gradients import sum_gradients
from mova_engine.distributed.processes import read_launch, start_processes
from mova_engine.distributed.ring import shared_query_attention
from mova_engine.errors import MovaError
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.models.mova import dual_tower_forward
from mova_engine.ops import OPERATORS, OpTable, bind
from mova_engine.ops.custom_ops import AttentionKernels
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import verify
from mova_engine.train.trainer import Trainer


# How a test can break context parallelism. Each takes the table of operators and the sharding, and returns them broken.
def _without_merge(ops: OpTable, sharding: ContextParallel):
    """The last shard's output is taken for the whole."""
    broken = ops.replaced(merge_lse=lambda outs, lses: (outs[-1], lses[-1]))
    return sharding.operators(broken), sharding


def _averaged_merge(ops: OpTable, sharding: ContextParallel):
    """Video to audio: the mean over ranks in place of the weighted sum."""

    def means(q, k, v):
        out, lse = ops.attention_lse(q, k, v)
        return sharding.whole.all_reduce(out) / sharding.size, lse

    return _from_audio(ops, sharding, AttentionKernels(means, ops.attention_backward), Group())


def _padded_with_zeros(ops: OpTable, sharding: ContextParallel):
    """Keys and values padded to a multiple of the ranks with zeros, which are attended to: the reference's way."""

    def padded(*tensors):
        return (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % sharding.size)) for x in tensors)

    def backward(dout, q, k, v, out, lse):
        dq, *others = ops.attention_backward(dout, q, *padded(k, v), out, lse)
        return dq, *(x[:, : k.shape[1]] for x in others)

    forward = {"attention_lse": lambda q, k, v: ops.attention_lse(q, *padded(k, v))}
    return sharding.operators(ops.replaced(**forward, attention_backward=backward)), sharding


def _differentiated_merge(ops: OpTable, sharding: ContextParallel):
    """Video to audio: each shard's own softmax is differentiated, as if the merge's weights were constants."""

    def backward(dout, q, k, v, out, lse):
        own, own_lse = ops.attention_lse(q, k, v)
        weight = torch.exp(own_lse - lse).transpose(1, 2).unsqueeze(-1)
        return ops.attention_backward(dout * weight, q, k, v, own, own_lse)

    return _from_audio(ops, sharding, AttentionKernels(ops.attention_lse, backward), sharding.whole)


def _from_audio(ops: OpTable, sharding: ContextParallel, kernels: AttentionKernels, group: Group):
    def attention(q, k, v, tokens):
        return shared_query_attention(kernels, group, q, k, v)

    return sharding.operators(ops).replaced(video_to_audio_attention=attention), sharding


MUTATIONS: dict[str, Callable] = {
    "no merge": _without_merge,
    "averaged merge": _averaged_merge,
    "zero padding": _padded_with_zeros,
    "differentiated merge": _differentiated_merge,
}


def errors_of_training(
    ulysses: int | None,
    tokens: int,
    batch: int,
    expert: int,
    checkpointing: str = "none",
    offload: bool = False,
    optimizer: str = "sgd",
    steps: int = 1,
    mutation: str | None = None,
    divide: bool = False,
    fsdp: bool = False,
    context_parallel: int | None = None,
    per_frame: bool = False,
) -> dict[str, float] | None:
    """Train `steps` steps in all ranks together and, in rank 0, alone; rank 0 returns how far apart they are.

    loss: relative. gradient: of the first step, worst tensor, relative to the larger of its maximum and 1e-6 of the
    model's. weights, moments: after all steps, likewise. divide: gradients averaged over the ranks, a mutation.
    """
    place, ops = processes(ulysses, context_parallel), bind(backend())
    heads = max(HEADS, ulysses or 0)
    sharding, table = place.context, place.context.operators(ops)
    if mutation is not None:
        table, sharding = MUTATIONS[mutation](ops, sharding)
    model = build_sharded(place, table, heads=heads)[0] if fsdp else build(table, heads)
    options = {"checkpointing": checkpointing, "offload": offload, "divide": divide, "fsdp": fsdp}
    clip = (tokens, batch, expert, optimizer, steps, per_frame)
    together = _train(model, sharding, *clip, wanted=place.is_first, **options)
    if not place.is_first:
        return None
    alone = _alone(heads, *clip)
    errors = {"loss": abs(together["loss"] / alone["loss"] - 1)}
    for part in ("gradient", "weights", "moments"):
        assert together[part].keys() == alone[part].keys()
    errors["gradient"] = worst(together["gradient"], alone["gradient"])
    errors["weights"] = worst(together["weights"], alone["weights"])
    # Squares are judged beside squares.
    kinds = {name.rpartition(":")[2] for name in alone["moments"]}
    errors["moments"] = max(worst(*(_of_kind(x["moments"], kind) for x in (together, alone))) for kind in kinds)
    return errors


def _of_kind(moments: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name: x for name, x in moments.items() if name.endswith(f":{kind}")}


# Both optimizers' of one model and clip: what differs from one check to the next is often the mesh alone.
@functools.lru_cache(maxsize=2)
def _alone(heads: int, *clip) -> dict:
    return _train(build(bind(backend()), heads), NO_CP, *clip)


def worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Largest |found - truth| of any tensor, relative to the larger of its maximum and 1e-6 of all tensors'."""
    floor = 1e-6 * max((float(x.abs().max()) for x in truth.values()), default=0.0)
    return max(
        (float((found[name] - x).abs().max()) / max(float(x.abs().max()), floor) for name, x in truth.items()),
        default=0.0,
    )


def wholes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one dtype of which each rank may have rows, which may be on the host; one exchange for all of them."""
    shared = {name: x for name, x in tensors.items() if isinstance(x, DTensor)}
    if not shared:
        return tensors
    group = next(iter(shared.values())).device_mesh.get_group("shard")
    ranks, own = dist.get_world_size(group), []
    for x in shared.values():
        rows = x.to_local().detach().to(device())
        own.append(rows.new_zeros(-(-x.shape[0] // ranks), *x.shape[1:]))
        own[-1][: len(rows)] = rows
    sent = torch.cat([rows.view(-1) for rows in own])
    every = sent.new_empty(ranks, len(sent))
    dist.all_gather_into_tensor(every.view(-1), sent, group=group)
    columns = every.split([rows.numel() for rows in own], dim=1)
    gathered = zip(shared, columns, shared.values(), strict=True)
    return tensors | {name: rows.reshape(-1, *x.shape[1:])[: x.shape[0]] for name, rows, x in gathered}


def _train(
    model,
    sharding,
    tokens,
    batch,
    expert,
    optimizer,
    steps,
    per_frame=False,
    checkpointing="none",
    offload=False,
    divide=False,
    fsdp=False,
    wanted=True,
) -> dict:
    """Whole tensors of what came of it; empty where they are not `wanted`, but all processes give their rows."""

    def asked_for(tensors: dict[str, Tensor], copy: bool = False) -> dict[str, Tensor]:
        gathered = wholes(tensors)
        return {name: x.clone() if copy else x for name, x in gathered.items()} if wanted else {}

    parameters = dict(model.named_parameters())
    optimizers = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-5),
    }
    rule = optimizers[optimizer](parameters.values())
    result = {}
    for step in range(steps):
        rule.zero_grad(set_to_none=True)
        runner = layer_runner(checkpointing, offload)
        loss = backward(model, clips(tokens, batch, step), expert, sharding, per_frame, runner=runner)
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        if sharding is not NO_CP:
            summed = [] if fsdp else gradients.values()
            sum_gradients([loss.view(1), *summed], sharding.whole, sharding.size if divide else 1)
        if step == 0:
            result = {"loss": float(loss), "gradient": asked_for(gradients, copy=True)}
        rule.step()
    result["weights"] = asked_for({name: p.detach() for name, p in parameters.items()})
    result["moments"] = asked_for(
        {
            f"{name}:{key}": rule.state[p][key]
            for name, p in parameters.items()
            for key in ("exp_avg", "exp_avg_sq", "momentum_buffer")
            if rule.state[p].get(key) is not None
        }
    )
    return result


class _Split(torch.autograd.Function):
    """A rank's own part of a tensor that all have; its gradient is the whole again."""

    @staticmethod
    def forward(ctx, sharding, x):
        ctx.sharding, ctx.total = sharding, x.shape[1]
        return sharding.shard(x).contiguous()

    @staticmethod
    def backward(ctx, grad):
        return None, _joined(ctx.sharding, grad, ctx.total)


class _Join(torch.autograd.Function):
    """All ranks' parts as one tensor that all have; a part's gradient is its own part of the gradient."""

    @staticmethod
    def forward(ctx, sharding, x, total):
        ctx.sharding = sharding
        return _joined(sharding, x, total)

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.sharding.shard(grad).contiguous(), None


class _Sum(torch.autograd.Function):
    """The identity; its gradient is the sum over ranks: what a rank's share of a gradient becomes."""

    @staticmethod
    def forward(ctx, sharding, x):
        ctx.sharding = sharding
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.sharding.whole.all_reduce(grad.float().contiguous()).to(grad.dtype)


def _joined(sharding: ContextParallel, x: Tensor, total: int) -> Tensor:
    whole = sharding.unshard(x.flatten(2), total).unflatten(2, x.shape[2:])
    return sharding.whole.all_reduce(whole.contiguous())


def findings_of_operator(role: str, ulysses: int | None, dtype: str, cases: tuple[str, ...]) -> list[str]:
    """The operator suite's judgement of a wrapped attention on whole tensors: what it finds wrong, by case."""
    place, ops = processes(ulysses), bind(backend())
    sharding = place.context
    table, operator = sharding.operators(ops), OPERATORS["attention"]

    def video_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = table.video_attention(*(_Split.apply(sharding, x) for x in (q, k, v)), q.shape[1])
        return _Join.apply(sharding, own, q.shape[1])

    def video_to_audio_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = (_Split.apply(sharding, x) for x in (k, v))
        out = table.video_to_audio_attention(_Sum.apply(sharding, q), *own, k.shape[1])
        # Every rank's loss is a share; here all of them are given the whole.
        return _Scaled.apply(out, 1 / sharding.size)

    wrapped = {"video_attention": video_attention, "video_to_audio_attention": video_to_audio_attention}[role]
    wrong = []
    for case in (c for c in cases_of(operator) if c.size == "test" and c.name in cases):
        for finding in verify(operator, wrapped, case, device(), getattr(torch, dtype)):
            if not finding.passed:
                wrong.append(f"{case.name}: {finding}")
    return wrong


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def sampled_and_local(ulysses: int | None, tokens: int) -> tuple[float, float]:
    """How far from one process's forward are: the gathered outputs of a shared one, and the wrapped model's own
    forward of the whole clip without a sharding.
    """
    place, ops = processes(ulysses), bind(backend())
    gathering = ContextParallel(*place.context.groups, gather=True)
    inputs = both(clips(tokens, 2))

    @torch.no_grad()
    def outputs(table: OpTable, sharding: Sharding) -> tuple[Tensor, Tensor]:
        model = build(table)
        return dual_tower_forward(model.expert(0), model.audio_dit, model.dual_tower_bridge, *inputs, sharding=sharding)

    plain, table = outputs(ops, NO_CP), gathering.operators(ops)
    found = (outputs(table, gathering), outputs(table, NO_CP))
    return tuple(max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(x, plain, strict=True)) for x in found)


def refusals() -> list[str]:
    """What the wrappers say of inputs that cannot be: too few heads for the ranks, a shard of another length."""
    said, world = [], read_launch().world
    for ulysses, heads, tokens in ((None, 1, 4), (None, world, 5), (1, world, 5)):
        context = processes(ulysses).context
        q = torch.zeros(1, tokens, heads, 8, device=device())
        try:
            context.operators(bind(backend())).video_attention(q, q, q, 4 * world)
        except MovaError as error:
            said.append(str(error))
    return said


def waiting_in_vain(timeout_s: float) -> tuple[float, str]:
    """The last rank stays away from an exchange: how long the others wait for it, and what ends that."""
    place = start_processes(backend(), read_launch(), MeshShape(dp_shard=2, ulysses=2), timeout_s)
    group, x = place.context.ulysses, torch.zeros(4, device=device())
    group.all_to_all(x, [2, 2], [2, 2])()
    if place.launch.rank == place.launch.world - 1:
        time.sleep(3 * timeout_s)
        return 0.0, ""
    began, said = time.monotonic(), ""
    try:
        group.all_to_all(x, [2, 2], [2, 2])()
    except RuntimeError as error:
        said = str(error)
    return time.monotonic() - began, said


def counted(scheme: int) -> dict[str, tuple[int, int]]:
    """Bytes that this rank sent and should have, by one scheme."""
    return count_scheme(COUNTED, backend(), scheme)


def sharded_in_bfloat16() -> dict[str, float | bool]:
    """A step of a sharded model that computes in bfloat16: its loss beside float32's, what its gradients are."""
    place, ops = processes(None), bind(backend())
    model, _ = build_sharded(place, place.context.operators(ops), torch.bfloat16)
    inputs = clips(64, 1)
    loss = place.context.summed(backward(model, inputs, 0, place.context))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    elements = sum(p.to_local().numel() for p in model.parameters())
    return {
        "loss": float(loss / backward(build(ops), inputs, 0) - 1),
        "float32": all(g.dtype == torch.float32 for g in gradients),
        "share": elements / sum(p.numel() for p in model.parameters()),
    }


def clipped(steps: int = 2) -> dict[str, float | bool]:
    """Gradients of a sharded model, clipped by the norm of all of them, beside one process's; and whether the expert
    that no step trains was ever gathered, and whether all of this needs fewer rows than there are.
    """
    place, ops = processes(None), bind(backend())
    model, shards = build_sharded(place, place.context.operators(ops), offload=True)
    gathered = []
    model.video_dit_2.blocks[0].register_forward_pre_hook(lambda *_: gathered.append(1))
    backward(model, clips(64, 1), 0, place.context)
    named = {name: p for name, p in model.named_parameters() if p.grad is not None}
    norm = clip_grad_norm([p.grad.to_local() for p in named.values()], 0.01, shards.group)
    alone = build(ops)
    backward(alone, clips(64, 1), 0)
    wanted = {name: p for name, p in alone.named_parameters() if p.grad is not None}
    truth = ops.clip_grad_norm([p.grad for p in wanted.values()], 0.01)
    found = wholes({name: p.grad for name, p in named.items()})
    return {
        "norm": float(norm / truth - 1),
        "gradient": worst(found, {name: p.grad for name, p in wanted.items()}),
        "idle expert": not gathered and not any(name.startswith("video_dit_2") for name in named),
    }


def trained(data: str, out: str, steps: int, batch: int, context_parallel: int) -> int:
    """A nano run with validation at its end; its exit status."""
    config = load_config(
        "nano",
        data=Path(data),
        out=Path(out),
        device=backend().name,
        steps=steps,
        memory={"checkpointing": "selective"},
        loader={"batch": batch, "num_fit_clips": 4},
        log={"every": 1, "tensorboard": False},
        validation={"every": steps, "data": Path(data), "samples": 0},
        parallel={"context_parallel": context_parallel},
    )
    with without_a_picture():
        return Trainer(config, Console(quiet=True)).run()


def refused_training(data: str, out: str, context_parallel: int) -> str | int:
    """What a run that cannot be says, or its exit status where it says nothing."""
    try:
        return trained(data, out, 1, 1, context_parallel)
    except MovaError as error:
        return str(error)
