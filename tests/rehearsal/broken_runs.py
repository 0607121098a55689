"""Runs with one fault each, for a rehearsal to find: `python -m mova_engine.rehearsal broken_runs:NAME DEVICE`."""

from typing import Any
from unittest.mock import patch

import torch

from mova_engine.diffusion import schedule
from mova_engine.distributed import fsdp
from mova_engine.memory import checkpointing
from mova_engine.rehearsal.stage import Stage
from mova_engine.train import dry_run, step


def wrong_device(**job: Any) -> dict[str, Any]:
    """The sound's latents stay on the host."""
    build = dry_run.BatchBuilder

    class Builder(build):
        def __call__(self, batch, factors=None):
            made = super().__call__(batch, factors)
            object.__setattr__(made, "audio", made.audio.cpu())
            return made

    with patch.object(dry_run, "BatchBuilder", Builder):
        return dry_run.in_this_process(**job)


def reading_step(**job: Any) -> dict[str, Any]:
    """The losses of each micro-batch are read, and a noise level is sent from pageable memory."""
    losses, made = step.micro_losses, schedule.add_noise

    def read(*args: Any, **kwargs: Any) -> Any:
        found = losses(*args, **kwargs)
        found.total.item()
        return found

    def sent(x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return made(x, noise, sigma.to(x.device))

    with patch.object(step, "micro_losses", read), patch.object(step, "add_noise", sent):
        return dry_run.in_this_process(**job)


def wrong_dtype(**job: Any) -> dict[str, Any]:
    """One weight of a block is in bfloat16 when the block is sharded."""
    shard = fsdp.shard_model

    def sharded(model, *args):
        bias = model.video_dit.blocks[0].norm3.bias
        bias.data = bias.data.to(torch.bfloat16)
        return shard(model, *args)

    with patch("mova_engine.train.model_setup.shard_model", sharded):
        return dry_run.in_this_process(**job)


def wrong_group(**job: Any) -> dict[str, Any]:
    """Heads are exchanged in the ring's group."""
    join = Stage.processes

    def joined(self, *args):
        place = join(self, *args)
        place.context.ulysses.process_group = place.context.ring.process_group
        return place

    with patch.object(Stage, "processes", joined):
        return dry_run.in_this_process(**job)


def mutating_policy(**job: Any) -> dict[str, Any]:
    """Checkpointing is to keep results of an exchange that writes into its argument."""
    with patch.dict(checkpointing.POLICIES, full=("c10d::alltoall_base_",)):
        return dry_run.in_this_process(**job)
