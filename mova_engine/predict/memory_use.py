"""Bytes on one device by part, and what the host holds for it."""

from dataclasses import dataclass

from mova_engine.predict.codec_cost import encode_cost
from mova_engine.predict.flops import parameter_counts
from mova_engine.predict.job import WIDTHS, PlannedRun, sharded
from mova_engine.predict.step_traffic import adapter_parameters, parameters, saved_inputs, trained_parameters

_FP32 = WIDTHS["fp32"]
# Layers whose weights are on the device at once where they are gathered or streamed: in use, and the next.
_BUFFERS = 2
_WORKING = "working set of a layer"


@dataclass(frozen=True)
class Memory:
    """Bytes on one device by part, and by part on the host for that device."""

    device: dict[str, float]
    host: dict[str, float]

    @property
    def total(self) -> float:
        """On the device."""
        return sum(self.device.values())


def memory(run: PlannedRun) -> Memory:
    """Predict. Parts that a run does not have are left out."""
    device: dict[str, float] = {}
    host: dict[str, float] = {}
    _weights(run, device, host)
    if run.job.training:
        _training_state(run, device, host)
        for parts, saved in zip((device, host), _saved_activations(run), strict=True):
            parts |= {name: value * run.job.batch for name, value in saved.items()}
    device[_WORKING] = _working(run) * run.job.batch
    _codecs(run, device)
    return Memory(*({name: value for name, value in parts.items() if value > 0} for parts in (device, host)))


def _weights(run: PlannedRun, device: dict[str, float], host: dict[str, float]) -> None:
    job, layout, policy = run.job, run.layout, run.policy
    used, everything = parameters(run, used=True), parameters(run, used=False)
    shards = sharded(layout)
    trained = job.task == "full"
    width = _FP32 if trained else run.frozen_width
    place = host if policy.weights_on_host else device
    place["weights"] = used * width / shards
    waiting = host if policy.expert == "host" else place
    waiting["second video expert"] = (everything - used) * width / shards
    if trained and shards == 1 and job.width != _FP32:
        device["weights' copies to compute with"] = used * job.width
    elif shards > 1 or policy.weights == "host":
        layers = _BUFFERS * _layer_parameters(run)
        device["weights gathered for the layers at work"] = layers * (job.width if trained else width)
    place["adapters"] = adapter_parameters(run, used=False) * _FP32 / shards


def _training_state(run: PlannedRun, device: dict[str, float], host: dict[str, float]) -> None:
    job, shards = run.job, sharded(run.layout)
    place = host if run.policy.weights_on_host else device
    place["gradients"] = trained_parameters(run, used=True) * _FP32 / shards
    if job.task == "full" and (shards > 1 or place is host):
        device["gradients of the layers at work"] = _BUFFERS * _layer_parameters(run) * job.width
    moments = trained_parameters(run, used=False) * _FP32 / shards
    place["optimizer's moments"] = 2 * moments
    if job.ema:
        place["moving average"] = moments


def _saved_activations(run: PlannedRun) -> tuple[dict[str, float], dict[str, float]]:
    """For one clip: bytes on the device, on the host."""
    device: dict[str, float] = {}
    host: dict[str, float] = {}
    job, policy, model = run.job, run.policy, run.job.model
    layers = model.video.num_layers
    inputs = saved_inputs(run)
    if policy.inputs == "host":
        host["block inputs"] = inputs
        inputs = _BUFFERS * run.local_video
    device["block inputs"] = inputs
    if "video_dit" not in job.components or policy.checkpointing == "full":
        return device, host
    if policy.checkpointing == "none":
        block, bridge = run.implementation.working
        bridges = len(model.bridge.layers) * ("dual_tower_bridge" in job.components)
        device["all activations"] = (layers * block + bridges * bridge) * (run.local_video + run.local_audio)
        return device, host
    # What selective checkpointing saves (`memory.checkpointing`): q, k and v as exchanged, output and log-sum-exp, the
    # output as returned.
    exchanged = run.layout.ulysses > 1
    tensors = 4 if exchanged and policy.checkpointing == "selective" else 1
    lse = model.clip.video_tokens * model.video.num_heads * _FP32 / run.layout.context_parallel
    names = "q, k, v, out and LSE" if tensors == 4 else "out and LSE"
    where = ", head-sharded" if exchanged else ""
    saved = layers * (tensors * run.local_video + lse)
    if run.layout.context_parallel > 1 and "dual_tower_bridge" in job.components:
        saved += len(model.bridge.layers) * _merged_attention(run)
    device[f"saved attention ({names}{where})"] = saved
    if exchanged:
        device["attention's output, exchanged back"] = layers * run.local_video
    return device, host


def _merged_attention(run: PlannedRun) -> float:
    """Output and log-sum-exp of one video-to-audio attention, which all ranks of a clip have whole."""
    bridge, queries = run.job.model.bridge, run.job.model.clip.audio_tokens
    return queries * (bridge.audio_hidden_dim * run.job.width + bridge.audio_hidden_dim // bridge.head_dim * _FP32)


def _working(run: PlannedRun) -> float:
    """What one layer of both towers keeps alive: all of its activations while it is differentiated."""
    implementation, chosen = run.implementation, run.job.components
    passes = implementation.working[0] if run.job.training else implementation.streaming
    tokens = run.local_video * ("video_dit" in chosen) + run.local_audio * ("audio_dit" in chosen)
    return passes * tokens


def _layer_parameters(run: PlannedRun) -> float:
    """Of one layer of everything that runs: a video block, an audio block, a bridge layer."""
    model, counts = run.job.model, parameter_counts(run.job.model)
    layers = {
        "video_dit": counts["video_dit"]["blocks"] / model.video.num_layers,
        "audio_dit": counts["audio_dit"]["blocks"] / model.audio.num_layers,
        "dual_tower_bridge": sum(counts["dual_tower_bridge"].values()) / max(len(model.bridge.layers), 1),
    }
    return sum(layers[name] for name in run.job.components)


def _codecs(run: PlannedRun, device: dict[str, float]) -> None:
    """Codecs and text encoder beside what else is on the device, `device` so far.

    Of those that sample a clip together one has the text encoder, another one the audio codec: what counts is the
    first. Where they are there for their stage alone, a run that encodes ahead has left them when it trains; sampling
    encodes words when all weights but waiting experts' are there, and no activations.
    """
    job, layout, policy = run.job, run.layout, run.policy
    cost, online = encode_cost(job.model), job.training and job.online
    video, audio = "video_dit" in job.components, "audio_dit" in job.components
    if not job.training and layout.cfg * layout.context_parallel > 1:
        audio = False
    if run.implementation.codecs_resident or online:
        device["codecs"] = cost.video_bytes * video + cost.audio_bytes * audio
        device["text encoder"] = cost.text_bytes
    elif not job.training:
        absent = device[_WORKING]
        if policy.expert == "host":
            experts = parameter_counts(job.model)["video_dit"].values()
            absent += sum(experts) * run.frozen_width / sharded(layout)
        device["text encoder, beyond what is not there yet"] = cost.text_bytes - absent
    if online:
        device["codecs' working set"] = cost.working_bytes * video
