"""What checkpointing keeps for the backward, and what it changes, in the processes of a World."""

import gc

import torch
from distributed.device import backend, device
from distributed.small import backward, build, build_sharded, clips, processes
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import _CachedTorchDispatchMode

from mova_engine.config.mesh import choose_mesh
from mova_engine.distributed.counted_traffic import SMALL
from mova_engine.distributed.processes import read_launch, start_processes
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.memory.host_offload import ActivationArena
from mova_engine.models.context_parallel import NO_CP
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova, dual_tower_forward
from mova_engine.ops import bind


def kept_bytes(policies: tuple[str, ...], ulysses: int) -> list[int]:
    """Bytes of results that a forward of the small model has put aside in this rank, in float32, by policy."""
    launch = read_launch()
    shape = choose_mesh(launch.world, SMALL.video.num_heads, context_parallel=launch.world, ulysses=ulysses)
    place = start_processes(backend(), launch, shape)
    ops = place.operators(bind(backend()))
    return [count(policy, place.sharding, ops) for policy in policies]


def count(checkpointing: str, sharding=NO_CP, ops=None) -> int:
    config = SMALL
    model = Mova(config, ops or bind(backend()))
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(device())
    frames, height, width = config.clip.latent_shape
    outputs = dual_tower_forward(
        model.expert(0),
        model.audio_dit,
        model.dual_tower_bridge,
        *modalities(
            torch.randn(1, config.video.in_dim, frames, height, width, device=device()),
            torch.randn(1, config.audio.in_dim, config.clip.audio_tokens, device=device()),
            torch.randn(1, config.text_tokens, config.video.text_dim, device=device()),
            torch.full((1,), 500.0, device=device()),
            torch.full((1,), 500.0, device=device()),
        ),
        runner=layer_runner(checkpointing),
        sharding=sharding,
    )
    found = [each for each in gc.get_objects() if type(each) is _CachedTorchDispatchMode]
    kept = [
        x.val
        for each in found
        for calls in each.storage.values()
        for x in tree_leaves(list(calls.values()))
        if hasattr(x, "val")
    ]
    # Stand-ins of what was sent, expanded from one element, hold no results.
    total = sum(x.numel() * x.element_size() for x in kept if 0 not in x.stride())
    # The graph, and with it what is kept, lives until here.
    del outputs
    return total


def changed_by_checkpointing(ulysses: int | None, fsdp: bool, dtype: str = "float32") -> list[str]:
    """In this rank: gradients that are not those without checkpointing, bit for bit, by policy and whether what it
    keeps is on the host; both experts, two forwards between which gradients add up.
    """
    place, dtype = processes(ulysses), getattr(torch, dtype)
    table, changed, expected = place.context.operators(bind(backend())), [], {}
    model = build_sharded(place, table, dtype)[0] if fsdp else build(table).to(dtype)
    kept = (("selective", True, False), ("selective", True, True), ("out", False, False), ("out", False, True))
    for policy, offload, saved in (("none", False, False), ("full", False, False), *kept):
        model.zero_grad(set_to_none=True)
        runner = layer_runner(policy, offload, offload_saved=saved)
        if saved:
            runner.arena = ActivationArena(poison=True)
        for expert in (0, 1):
            backward(model, clips(64, 1, expert), expert, place.context, runner=runner)
        found = {name: p.grad for name, p in model.named_parameters()}
        found = {name: x.to_local() if isinstance(x, DTensor) else x for name, x in found.items()}
        expected = expected or found
        changed += [f"{policy} {saved}: {name}" for name, x in expected.items() if not torch.equal(x, found[name])]
    return changed


def changed_by_compiling(ulysses: int | None) -> tuple[int, list[str]]:
    """In this rank: graphs of a forward that is compiled with its exchanges, and gradients that are others then."""
    place, graphs, found = processes(ulysses), [], []
    model = build(place.context.operators(bind(backend())))

    def count(module, example_inputs):
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(module)
        return aot_eager(module, example_inputs)

    for compiled in (False, True):
        model.zero_grad(set_to_none=True)
        if compiled:
            model.compile(backend=count, fullgraph=True)
        backward(model, clips(64, 1), 0, place.context)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    expected, ours = found
    floor = 1e-6 * max(float(x.abs().max()) for x in expected.values())
    changed = [n for n, x in expected.items() if (ours[n] - x).abs().max() > 1e-4 * max(float(x.abs().max()), floor)]
    return len(graphs), changed
