"""Activation checkpointing: layers that the backward pass runs again instead of keeping what they computed."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mova_engine.config.memory import CHECKPOINTING
from mova_engine.errors import MovaError
from mova_engine.memory.host_offload import HostCopies
from mova_engine.models.layers import ResidualStream
from mova_engine.models.mova import DIRECT, DualTowerLayers, LayerRunner
from mova_engine.ops.saved_outputs import SavedOps


def layer_runner(checkpointing: str = "none", offload: bool = False) -> LayerRunner:
    """How one forward runs its layers.

    checkpointing: what the backward computes again. "none": nothing. "full": every layer, from its inputs. "selective":
    the same without video self-attention and without exchanges between processes. "out": as selective, but q, k and v
    of shared clips are exchanged again. offload: layers' inputs wait for the backward in the host's memory.
    MovaError for another policy, and for offload without one.
    """
    if checkpointing not in CHECKPOINTING:
        raise MovaError(f"checkpointing must be one of {', '.join(CHECKPOINTING)}, got '{checkpointing}'")
    if checkpointing == "none":
        if offload:
            raise MovaError(
                "inputs of checkpointed layers alone wait on the host: choose checkpointing full, selective or out"
            )
        return DIRECT
    return CheckpointedLayers(checkpointing, offload)


class CheckpointedLayers:
    """A LayerRunner of which only the layers' inputs and what the policy saves stay until the backward."""

    def __init__(self, policy: str, offload: bool = False) -> None:
        self.policy, self.host = policy, HostCopies() if offload else None

    def run(
        self, layers: DualTowerLayers, layer: int, video: ResidualStream, audio: ResidualStream
    ) -> tuple[ResidualStream, ResidualStream]:
        if layers.trace is not None or not torch.is_grad_enabled():
            return layers.run(layer, video, audio)
        # Settled first: a layer then keeps one activation for its recomputation instead of a pending pair.
        states = layers.settle(video, audio)
        saved = SavedOps(self.policy)

        def region(video: Tensor, audio: Tensor) -> tuple[ResidualStream, ResidualStream]:
            return layers.run(layer, ResidualStream(video), ResidualStream(audio))

        def run() -> tuple[ResidualStream, ResidualStream]:
            return checkpoint(region, *states, use_reentrant=False, context_fn=saved.contexts, preserve_rng_state=False)

        if self.host is None:
            return run()
        with self.host.of(states):
            return run()
