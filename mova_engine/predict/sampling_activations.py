"""Predicts what is alive in a layer while a clip is sampled, in P, and what is kept of it."""

import math

from mova_engine.ops.machine import Machine
from mova_engine.ops.table import OPERATORS
from mova_engine.predict.job import WIDTHS, PlannedRun
from mova_engine.predict.operator_cost import bound

# P of q, k and v packed and arriving, beside those that are sent, while a clip is sampled by several.
_EXCHANGE = 8.6
# P around a bridge's queries while they are rotated, beside the residual stream.
_IN_A_BRIDGE = 4
# P around an operator that adds an update and normalises, and around a feed-forward that is computed in chunks.
_NORMALISING, _CHUNKED = 4, 3


def sampled(run: PlannedRun, machine: Machine | None) -> float:
    """P alive while one evaluation of a clip is sampled: in attention, when heads are exchanged or a bridge's queries
    rotated before it, in a norm, or in the feed-forward.
    """
    implementation, video = run.implementation, run.job.model.video
    attending = implementation.streaming
    if not implementation.pending_updates:
        return attending
    chunked = run.policy.chunking == "rows"
    # A bridge rotates its queries of all tokens at once.
    rotating = _IN_A_BRIDGE if chunked else attending
    # A product that has GELU in it needs no second tensor; that of quantised weights has not.
    hidden = 1.0 if run.quantised is None and (machine is None or _in_the_product(run, machine)) else 2.0
    feeding = _CHUNKED if chunked else 2 + hidden * video.ffn_dim / video.dim
    return max(attending + _EXCHANGE * (run.layout.ulysses > 1), rotating, feeding, _NORMALISING)


def kept_video(run: PlannedRun) -> float:
    """Bytes that are kept of a clip's video for evaluations that run the audio tower alone (`inference.velocities`):
    the keys and values that the bridge reads of it, by layer and evaluation; its velocities in float32; what its first
    layer and the others have added to the stream.
    """
    job, kept = run.job, run.job.kept
    if kept is None:
        return 0.0
    # Guidance's evaluations are divided among processes, or all in this one.
    bridged, evaluations = (min(count, 1) if run.layout.cfg > 1 else count for count in (kept.bridged, job.evaluations))
    model, tokens = job.model, job.model.clip.video_tokens / run.layout.context_parallel
    read = len(model.bridge.layers) * 2 * model.bridge.audio_hidden_dim * job.width
    found = bridged * tokens * read * ("dual_tower_bridge" in job.components)
    if kept.velocities:
        found += evaluations * model.video.out_dim * math.prod(model.clip.latent_shape) * WIDTHS["fp32"]
    return found + 2 * evaluations * run.local_video * kept.layers


def _in_the_product(run: PlannedRun, machine: Machine) -> bool:
    """Whether a machine's `linear_gelu` writes nothing but GELU's result."""
    chosen = bound(machine, training=run.job.training, precision=run.job.precision)["linear_gelu"]
    passes = OPERATORS["linear_gelu"].passes(chosen)
    return passes is not None and passes.forward == 0
