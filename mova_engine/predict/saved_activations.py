"""Bytes that layers keep for the backward of a clip, on the device and on the host."""

from mova_engine.config.stages import OFFLOAD_LAYERS
from mova_engine.predict.fp8_cost import kept
from mova_engine.predict.job import WIDTHS, PlannedRun

_FP32 = WIDTHS["fp32"]
# P of a block's inputs of adapters that a block without them does not keep.
_ADAPTERS_INPUTS = 3.7
_INPUTS = "block inputs"


def saved_activations(run: PlannedRun) -> tuple[dict[str, float], dict[str, float]]:
    """By part, for one clip: bytes on the device, on the host."""
    job, policy, model = run.job, run.policy, run.job.model
    layers = model.video.num_layers
    device, host = {_INPUTS: saved_inputs(run)}, on_host(run)
    if policy.checkpointing != "none":
        device |= saved_results(run)
    elif "video_dit" not in job.components:
        device["all activations"] = model.audio.num_layers * _audio_block(run) * run.local_audio
    else:
        block, bridge = run.implementation.working
        block += _adapted(run) + kept(run)
        bridges = len(model.bridge.layers) * ("dual_tower_bridge" in job.components)
        device["all activations"] = (layers * block + bridges * bridge) * (run.local_video + run.local_audio)
    for name in host:
        device[name] = OFFLOAD_LAYERS * (run.local_video if name == _INPUTS else device[name] / layers)
    return device, host


def on_host(run: PlannedRun) -> dict[str, float]:
    """By part, for one clip: bytes of what waits on the host."""
    found = {_INPUTS: saved_inputs(run)} if run.policy.inputs == "host" else {}
    return found | (saved_results(run) if run.policy.saved == "host" else {})


def freed_by_layers(run: PlannedRun) -> float:
    """Bytes on the device, of one clip, that the backward frees layer by layer: not what two layers keep, if what the
    others keep is on the host.
    """
    device, host = saved_activations(run)
    return sum(size for name, size in device.items() if name not in host)


def saved_inputs(run: PlannedRun) -> float:
    """Bytes of block inputs that checkpointing keeps on a rank; 0 without checkpointing.

    Where a block's gate is trained, its gradient needs the update that waits beside the stream: both are inputs of the
    next layer. Of a frozen gate the sum alone is.
    """
    if run.policy.checkpointing == "none" or not run.job.training:
        return 0
    model, chosen = run.job.model, run.job.components
    bridges = len(model.bridge.layers) * (run.implementation.inputs_per_bridge and "dual_tower_bridge" in chosen)
    pending = run.implementation.pending_updates and run.job.task == "full"

    def inputs(layers: int) -> int:
        return layers + bridges + (layers - 1) * pending

    video = inputs(model.video.num_layers) * run.local_video * ("video_dit" in chosen)
    return video + inputs(model.audio.num_layers) * run.local_audio * ("audio_dit" in chosen)


def saved_results(run: PlannedRun) -> dict[str, float]:
    """By part, the bytes of what selective checkpointing keeps on a rank (`memory.checkpointing`): q, k and v as
    exchanged, output and log-sum-exp, the output as returned.
    """
    job, policy, model = run.job, run.policy, run.job.model
    if policy.checkpointing in ("none", "full") or not job.training or "video_dit" not in job.components:
        return {}
    exchanged, layers = run.layout.ulysses > 1, model.video.num_layers
    tensors = 4 if exchanged and policy.checkpointing == "selective" else 1
    lse = model.clip.video_tokens * model.video.num_heads * _FP32 / run.layout.context_parallel
    names = "q, k, v, out and LSE" if tensors == 4 else "out and LSE"
    where = ", head-sharded" if exchanged else ""
    saved = layers * (tensors * run.local_video + lse)
    if run.layout.context_parallel > 1 and "dual_tower_bridge" in job.components:
        saved += len(model.bridge.layers) * _merged_attention(run)
    found = {f"saved attention ({names}{where})": saved}
    if exchanged:
        found["attention's output, exchanged back"] = layers * run.local_video
    return found


def _adapted(run: PlannedRun) -> float:
    """P that a block keeps more where it has adapters: their inputs, and GELU's result, which is not made again."""
    job, video = run.job, run.job.model.video
    if job.task != "lora" or not run.implementation.pending_updates:
        return 0.0
    return _ADAPTERS_INPUTS + video.ffn_dim / video.dim


def _audio_block(run: PlannedRun) -> float:
    """P that an audio block keeps: a video block's, its wider feed-forward, and the text's k (twice) and v, of which
    there are more tokens than of sound.
    """
    video, audio = run.job.model.video, run.job.model.audio
    wider = audio.ffn_dim / audio.dim - video.ffn_dim / video.dim
    return run.implementation.working[0] + kept(run) + wider + 3 * run.job.model.text_tokens / run.audio_tokens


def _merged_attention(run: PlannedRun) -> float:
    """Output and log-sum-exp of one video-to-audio attention, which all ranks of a clip have whole."""
    bridge, queries = run.job.model.bridge, run.job.model.clip.audio_tokens
    return queries * (bridge.audio_hidden_dim * run.job.width + bridge.audio_hidden_dim // bridge.head_dim * _FP32)
