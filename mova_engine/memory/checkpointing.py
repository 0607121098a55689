"""Activation checkpointing: layers that the backward pass runs again instead of keeping what they computed.

By torch's selective checkpointing: a policy is a list of operators whose results a layer keeps; all else is computed
again. The gradients are those without checkpointing, bit for bit, whatever the policy.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mova_engine.config.memory import CHECKPOINTING
from mova_engine.errors import MovaError
from mova_engine.memory.host_offload import HostCopies
from mova_engine.models.layers import ResidualStream
from mova_engine.models.mova import DIRECT, DualTowerLayers, LayerRunner
from mova_engine.ops import OpTable

_ATTENTION = ("mova::attention", "mova::ring_attention", "mova::shared_query_attention")
# The operators whose results each setting keeps; "none" computes nothing again.
POLICIES: dict[str, tuple[str, ...]] = {
    "full": (),
    "selective": (*_ATTENTION, "mova::tokens_to_heads", "mova::heads_to_tokens"),
    "out": (*_ATTENTION, "mova::heads_to_tokens"),
}


def layer_runner(checkpointing: str = "none", offload: bool = False, save: Iterable[str] = ()) -> LayerRunner:
    """How one forward runs its layers.

    checkpointing: what the backward computes again. "none": nothing. "full": every layer, from its inputs. "selective":
    the same without video self-attention and without exchanges between processes. "out": as selective, but q, k and v
    of shared clips are exchanged again. offload: layers' inputs wait for the backward in the host's memory. save:
    further operators of torch's dispatcher whose results are kept, such as "aten::mm".
    MovaError for another policy, for offload without one, and as `saved_operators`.
    """
    if checkpointing not in CHECKPOINTING:
        raise MovaError(f"checkpointing must be one of {', '.join(CHECKPOINTING)}, got '{checkpointing}'")
    if checkpointing == "none":
        if offload:
            raise MovaError(
                "inputs of checkpointed layers alone wait on the host: choose checkpointing full, selective or out"
            )
        return DIRECT
    return CheckpointedLayers(saved_operators((*POLICIES[checkpointing], *save)), offload)


def saved_operators(names: Iterable[str]) -> frozenset[torch._ops.OpOverload]:
    """The operators of these names, "namespace::name" or "namespace::name.overload".

    MovaError for one that there is not, and for one that changes its arguments: what it wrote would not be written
    again when the layer is recomputed, and the gradients would be silently wrong.
    """
    found = set()
    for name in names:
        namespace, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        operator = getattr(getattr(getattr(torch.ops, namespace), base, None), overload or "default", None)
        if operator is None:
            raise MovaError(f"checkpointing cannot keep results of {name}: torch knows no such operator")
        if _changes_arguments(operator._schema):
            raise MovaError(
                f"checkpointing cannot keep results of {name}: it changes its arguments, which would not be changed "
                "again where a layer is recomputed; name a functional operator"
            )
        found.add(operator)
    return frozenset(found)


def _changes_arguments(schema: torch._C.FunctionSchema) -> bool:
    # Schemas of torch.distributed's operators do not say what they write: they return a Work to wait for.
    waits = any(result.type.kind() == "ClassType" for result in schema.returns)
    return schema.is_mutable or waits or schema.name.endswith("_")


class CheckpointedLayers:
    """A LayerRunner of which the layers' inputs and the results of the operators `saved` stay until the backward."""

    def __init__(self, saved: frozenset[torch._ops.OpOverload], offload: bool = False) -> None:
        self.host = HostCopies() if offload else None
        self.settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if saved:
            self.settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy(saved))

    def run(
        self, layers: DualTowerLayers, layer: int, video: ResidualStream, audio: ResidualStream
    ) -> tuple[ResidualStream, ResidualStream]:
        if layers.trace is not None or not torch.is_grad_enabled():
            return layers.run(layer, video, audio)

        video, audio = _lean(video, layers.video_dit.ops), _lean(audio, layers.audio_dit.ops)

        def region(*streams: Tensor | None) -> tuple[ResidualStream, ResidualStream]:
            return layers.run(layer, ResidualStream(*streams[:3]), ResidualStream(*streams[3:]), recomputed=True)

        # Not an update of nothing, which has no memory of its own.
        inputs = [x for x in (*video[:2], *audio[:2]) if x is not None and 0 not in x.stride()]
        with nullcontext() if self.host is None else self.host.of(inputs):
            return checkpoint(region, *video, *audio, **self.settings)


def _lean(stream: ResidualStream, ops: OpTable) -> ResidualStream:
    """The same stream, of which less need wait for a recomputation.

    A pending update whose gate is trained is passed on as it is: its gradient needs the update in any case. Of another
    one the sum alone waits, with an update of nothing beside it. Either way the kernels that add the update, and their
    gradients, are those of a layer that is not recomputed; adding it first would round once more.
    """
    if stream.y is None or (stream.gate is not None and stream.gate.requires_grad):
        return stream
    return ResidualStream(*_Added.apply(ops.gate_residual, stream.x, stream.y, stream.gate), stream.gate)


class _Added(torch.autograd.Function):
    """(x + gate * y, zeros for y). What comes back for them are the gradients of x and y themselves."""

    @staticmethod
    def forward(ctx: Any, gate_residual: Callable, x: Tensor, y: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
        return gate_residual(x, y, gate), y.new_zeros(y.shape[-1]).expand_as(y)

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dy: Tensor) -> tuple[None, Tensor, Tensor, None]:
        return None, dx, dy, None


def _policy(saved: frozenset[torch._ops.OpOverload]) -> Callable[..., CheckpointPolicy]:
    def policy(context: Any, operator: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operator in saved else CheckpointPolicy.PREFER_RECOMPUTE

    return policy
