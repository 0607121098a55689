"""Activation checkpointing: the backward pass runs a layer again instead of keeping the layer's intermediate results.

It uses torch's selective checkpointing. A policy lists the operators whose results a layer keeps; everything else is
recomputed. Hooks on saved tensors do not see these results, so that where they wait on the host, contexts of our own
keep them (`host_offload`). Gradients are bit-identical to those without checkpointing under every policy.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    SAC_IGNORED_OPS,
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from mova_engine.config.memory import CHECKPOINTING
from mova_engine.errors import MovaError
from mova_engine.memory.host_offload import ActivationArena
from mova_engine.memory.kept_results import kept_results
from mova_engine.models.layers import ResidualStream
from mova_engine.models.mova import DIRECT, DualTowerLayers, LayerRunner
from mova_engine.ops import OpTable

_ATTENTION = ("mova::attention", "mova::ring_attention", "mova::shared_query_attention", "mova::exchanged_attention")
# The operators whose results each setting keeps. With "none" nothing is recomputed.
POLICIES: dict[str, tuple[str, ...]] = {
    "full": (),
    "selective": (*_ATTENTION, "mova::tokens_to_heads"),
    "out": _ATTENTION,
}


# Labels for profilers. FSDP sets them around what it does for a unit, which is more in some recomputations than in the
# forward: torch, which counts operations to find the kept results, would refuse those.
SAC_IGNORED_OPS.update(
    (torch.ops.profiler._record_function_enter_new.default, torch.ops.profiler._record_function_exit._RecordFunction)
)


def layer_runner(
    checkpointing: str = "none",
    offload: bool = False,
    save: Iterable[str] = (),
    offload_saved: bool = False,
    gathered_ahead: bool = False,
) -> LayerRunner:
    """Return the LayerRunner that runs the layers of forward passes, one after the other.

    checkpointing: what the backward recomputes. "none": nothing. "full": every layer, from its inputs. "selective":
    every layer except attention and the exchanges between processes, whose results are kept. "out": as "selective", but
    the exchange of q, k and v (context parallelism) is repeated.
    offload: keep the layers' inputs in host memory until the backward needs them.
    save: further operators of torch's dispatcher whose results are kept, such as "aten::mm".
    offload_saved: keep the results in host memory likewise. A runner that offloads keeps that memory: use one for all
    steps.
    gathered_ahead: FSDP2 gathers weights of other layers while a layer runs (`MemoryConfig.prefetch`).
    Raises MovaError for an unknown `checkpointing`, for `offload` with "none", for `offload_saved` where no results are
    kept, and as `saved_operators` does.
    """
    if checkpointing not in CHECKPOINTING:
        raise MovaError(f"checkpointing must be one of {', '.join(CHECKPOINTING)}, got '{checkpointing}'")
    saved = saved_operators((*POLICIES.get(checkpointing, ()), *save))
    if offload_saved and (checkpointing == "none" or not saved):
        raise MovaError(f"checkpointing {checkpointing} keeps no results for the host: choose selective or out")
    if checkpointing == "none":
        if offload:
            raise MovaError(
                "inputs can wait on the host with checkpointing only: choose checkpointing full, selective or out"
            )
        return DIRECT
    return CheckpointedLayers(saved, offload, offload_saved, gathered_ahead)


def saved_operators(names: Iterable[str]) -> frozenset[torch._ops.OpOverload]:
    """Look up operators by name: "namespace::name" or "namespace::name.overload".

    Raises MovaError for an unknown operator and for one that changes its arguments: a recomputation that skips the
    operator would not repeat the change, and the gradients would be silently wrong.
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
                f"checkpointing cannot keep results of {name}: it changes its arguments, and recomputing the layer "
                "would not repeat the change; name a functional operator"
            )
        found.add(operator)
    return frozenset(found)


def _changes_arguments(schema: torch._C.FunctionSchema) -> bool:
    # The schemas of torch.distributed's in-place operators do not declare the write; they are recognised by the Work
    # object that they return.
    waits = any(result.type.kind() == "ClassType" for result in schema.returns)
    return schema.is_mutable or waits or schema.name.endswith("_")


class CheckpointedLayers:
    """A LayerRunner that keeps the inputs of each layer and the results of the operators in `saved` for the backward.

    offload: keep the inputs in host memory. offload_saved: keep the results there. arena: that memory. gathered_ahead:
    as of `layer_runner`.
    """

    def __init__(
        self,
        saved: frozenset[torch._ops.OpOverload],
        offload: bool = False,
        offload_saved: bool = False,
        gathered_ahead: bool = False,
    ) -> None:
        self.saved, self.offload, self.offload_saved = saved, offload, offload_saved
        self.gathered_ahead = gathered_ahead
        self.arena = ActivationArena() if offload or offload_saved else None

    def run(
        self, layers: DualTowerLayers, layer: int, video: ResidualStream, audio: ResidualStream
    ) -> tuple[ResidualStream, ResidualStream]:
        if layers.trace is not None or not torch.is_grad_enabled():
            if layers.enter is not None:
                layers.enter(layer)
            return layers.run(layer, video, audio)

        video = _shrink_inputs(video, layers.video_dit.ops)
        audio = _shrink_inputs(audio, layers.audio_dit.ops)

        # `checkpoint` must see the tensors themselves, so the streams are passed by their fields.
        def region(
            x: Tensor, y: Tensor | None, gate: Tensor | None, x_a: Tensor, y_a: Tensor | None, gate_a: Tensor | None
        ) -> tuple[ResidualStream, ResidualStream]:
            return layers.run(layer, ResidualStream(x, y, gate), ResidualStream(x_a, y_a, gate_a), recomputed=True)

        # An expanded zero update (stride 0) occupies no memory worth offloading.
        inputs = [x for x in (video.x, video.y, audio.x, audio.y) if x is not None and 0 not in x.stride()]
        copies = None if self.arena is None else self.arena.begin_layer()
        settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if self.offload_saved and copies is not None:
            settings["context_fn"] = partial(copies.results, self.saved)
        elif self.saved and self.gathered_ahead:
            settings["context_fn"] = partial(kept_results, self.saved)
        elif self.saved:
            settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy(self.saved))
        if layers.enter is not None:
            contexts = settings.get("context_fn", _no_contexts)
            settings["context_fn"] = partial(_entered, partial(layers.enter, layer), contexts)
        with copies.inputs(inputs) if self.offload and copies is not None else nullcontext():
            return checkpoint(region, *video, *audio, **settings)


def _no_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), nullcontext()


def _entered(
    enter: Callable[[], None], contexts: Callable[[], tuple[AbstractContextManager, AbstractContextManager]]
) -> tuple[AbstractContextManager, AbstractContextManager]:
    """The contexts of a layer's forward and recomputation, each after `enter`.

    Selective checkpointing compares the operators of both. Those that bring the layer's weights differ, because other
    layers are fetched ahead in the backward, so that they must not run in its contexts.
    """

    @contextmanager
    def after(context: AbstractContextManager) -> Iterator[None]:
        enter()
        with context:
            yield

    forward, recomputation = contexts()
    return after(forward), after(recomputation)


def _shrink_inputs(stream: ResidualStream, ops: OpTable) -> ResidualStream:
    """Return a stream of the same value that needs less memory as a kept input.

    Where the gate needs a gradient, the stream is returned unchanged: the gate's gradient needs the pending update y.
    Otherwise x + gate * y is computed now, and y becomes an expanded zero, so that one tensor is kept instead of two.
    The layer then runs the same kernels as without checkpointing: values and gradients are rounded the same way.
    """
    if stream.y is None or (stream.gate is not None and stream.gate.requires_grad):
        return stream
    x, y = _Added.apply(ops.gate_residual, stream.x, stream.y, stream.gate)
    return ResidualStream(x, y, stream.gate)


class _Added(torch.autograd.Function):
    """(x + gate * y, zeros in place of y). The gradients of these two outputs are passed on as those of x and y."""

    @staticmethod
    def forward(ctx: Any, gate_residual: Callable, x: Tensor, y: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
        return gate_residual(x, y, gate), y.new_zeros(y.shape[-1]).expand_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        dx, dy = grads
        return None, dx, dy, None


def _policy(saved: frozenset[torch._ops.OpOverload]) -> Callable[..., CheckpointPolicy]:
    def policy(context: Any, operator: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operator in saved else CheckpointPolicy.PREFER_RECOMPUTE

    return policy
