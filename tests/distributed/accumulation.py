"""Steps of several micro-batches: what is sent for one, and what becomes of the weights."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from distributed.device import backend, device
from distributed.small import COUNTED
from torch import Tensor
from torch.distributed.tensor import DTensor

from mova_engine.config.mesh import MeshShape, choose_mesh
from mova_engine.config.recipes import load_config
from mova_engine.distributed import gradients
from mova_engine.distributed.fsdp import shard_model
from mova_engine.distributed.processes import Processes, read_launch, start_processes
from mova_engine.distributed.stop_signals import ASKED
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova
from mova_engine.ops import DTYPES, bind
from mova_engine.rehearsal.collective_log import CollectiveLog
from mova_engine.train.batch import LatentBatch
from mova_engine.train.masters import Weights
from mova_engine.train.step import Updater

MODEL = replace(COUNTED, experts=2)
# Of them both experts are drawn.
STEPS = 3
# FSDP units that a step uses: blocks, heads and embeddings of a video expert and the audio tower, both directions of
# each bridge layer, the whole model.
BRIDGE = 2 * len(MODEL.bridge.layers)
UNITS = (MODEL.video.num_layers + 2) + (MODEL.audio.num_layers + 2) + BRIDGE + 1


def _latents(place: int) -> LatentBatch:
    """The clip of a place in the run."""
    source, clip = torch.Generator().manual_seed(place), MODEL.clip
    video, audio = (1, 16, *clip.latent_shape), (1, 128, clip.audio_tokens)
    text = (1, MODEL.text_tokens, MODEL.video.text_dim)
    drawn = [torch.randn(shape, generator=source).to(device()) for shape in (audio, text, video, video)]
    return LatentBatch(drawn[0], drawn[1], torch.zeros_like(drawn[1]), drawn[2], drawn[3], ("clip",))


def _clips(step: int, micro_batches: int, shape: MeshShape, rank: int) -> Iterator[LatentBatch]:
    """A data-parallel group's clips of a step, of which all groups have the same however many they are."""
    for micro in range(micro_batches):
        yield _latents((step * micro_batches + micro) * shape.data_parallel + rank)


@torch.no_grad()
def _outputs(model: Mova, weights: Weights) -> list[float]:
    """Of both experts, with the averaged weights, as a validation between steps has them."""
    clip, found = _latents(10**6), list[float]()
    condition = torch.cat([clip.video, clip.video, clip.video[:, :4]], 1)
    timestep = torch.full((1,), 500.0)
    inputs = modalities(condition, clip.audio, clip.text, timestep, timestep)
    with weights.averaged():
        for expert in (0, 1):
            found += [float(x.square().mean()) for x in model(*inputs, expert=expert)]
    return found


def accumulated(
    cases: list[dict[str, str]], clips: int, replicate: int = 1, dtype: str = "float32", bridge_dropout: float = 0.0
) -> list[dict[str, Any]]:
    """Steps of `clips` clips, one in each micro-batch, by the settings of memory of each case.

    calls: (collectives, bytes sent) of the last step, by kind and group. weights: all of them, after all steps.
    outputs: between the steps. asked: what each step told of all ranks' wishes.
    """
    torch.set_num_threads(1)
    launch = read_launch()
    shape = choose_mesh(launch.world, MODEL.video.num_heads, dp_replicate=replicate)
    place = start_processes(backend(), launch, shape, timeout_s=120)
    micro_batches, diffusion = clips // shape.data_parallel, {"bridge_dropout": bridge_dropout}
    return [_accumulated(memory, micro_batches, shape, place, dtype=dtype, diffusion=diffusion) for memory in cases]


def summed_beside_or_after(clips: int, bucket: int) -> list[dict[str, Any]]:
    """As `accumulated`, of processes that have all weights: with sums in the last backward, and with sums after it.

    bucket: elements. in_backward: buckets that were sent in a backward, of all steps.
    """
    torch.set_num_threads(1)
    launch = read_launch()
    shape = choose_mesh(launch.world, MODEL.video.num_heads)
    place, found = start_processes(backend(), launch, shape, timeout_s=120), []
    start, sent = gradients._start, list[bool]()

    def noted(*args: Any) -> Any:
        sent.append(torch._C._current_graph_task_id() != -1)
        return start(*args)

    for beside in (True, False):
        sent.clear()
        with (
            patch.multiple(gradients, BUCKET=bucket, _start=noted),
            patch.object(type(backend()), "sums_in_backward", beside),
        ):
            case = _accumulated({"checkpointing": "full"}, clips // launch.world, shape, place, shard=False)
        found.append(case | {"in_backward": sum(sent)})
    return found


def _accumulated(
    memory: dict[str, str], micro_batches: int, shape: MeshShape, place: Processes, shard: bool = True, **settings: Any
) -> dict[str, Any]:
    shard = shard and shape.world > 1
    config = load_config(
        "nano",
        **settings,
        global_batch_size=micro_batches * shape.data_parallel,
        parallel={"shard": shard, "replicate": shape.dp_replicate},
        loader={"batch": 1},
        memory=memory,
    )
    dtype = DTYPES[config.dtype]
    model = Mova(MODEL, bind(backend(), dtypes=(dtype,)), device="meta")
    shards, source = None, torch.Generator().manual_seed(1)
    if shard:
        shards = shard_model(model, place, device(), dtype, config.memory)
        model.init_weights(source, lambda p, value: shards.piece(p).take(value))
    else:
        model.to_empty(device=device())
        model.init_weights(source)
    weights = Weights(model, dtype, 0.5, shards)
    descent = torch.optim.SGD([{"params": weights.tensors(), "name": "all", "peak_lr": 0.1}], lr=0.1, momentum=0.9)
    updater = Updater(config, model, weights, descent, model.audio_dit.ops, place)
    log, outputs, asked = CollectiveLog(), list[list[float]](), list[int]()
    for step in range(STEPS):
        batches = _clips(step, micro_batches, shape, place.data_rank)
        ready = updater.prepared(step, batches, lambda batch: batch)
        log.forget()
        # The last rank is asked to save, the first one to stop.
        wanted = {0: ASKED[-1], shape.world - 1: ASKED[0]}.get(place.launch.rank, 0) if step == 1 else 0
        with log:
            asked.append(updater.step(step, ready, wanted=lambda wanted=wanted: wanted).asked)
        outputs.append(_outputs(model, weights))
    return {
        "calls": {(x.kind, x.group): (x.calls, x.bytes_sent) for x in log.collectives()},
        "weights": {name: _whole(parameter.detach()) for name, parameter in model.named_parameters()},
        "outputs": outputs,
        "asked": asked,
    }


def _whole(parameter: Tensor) -> np.ndarray:
    """Arrays, which processes can send each other."""
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).cpu().numpy()
