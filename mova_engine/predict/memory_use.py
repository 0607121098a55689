"""Predicts the bytes on one device by part, and the bytes of host memory for it."""

import math
from dataclasses import dataclass
from typing import Any

from mova_engine.config.model import COMPONENTS
from mova_engine.config.stages import (
    AUDIO_VAE,
    DECODE_AUDIO,
    DECODE_VIDEO,
    DENOISE,
    ENCODE_CLIPS,
    ENCODE_FRAMES,
    ENCODE_TEXT,
    EXPERTS,
    PART_NAMES,
    SAMPLING,
    STREAM_SLOTS,
    TEXT_ENCODER,
    TRAIN,
    VIDEO_VAE,
    held,
    stages,
)
from mova_engine.ops.machine import Machine
from mova_engine.ops.moment_blocks import moment_bytes
from mova_engine.predict.codec_cost import (
    codec_bytes,
    decoding_bytes,
    encode_cost,
    encoding_bytes,
    host_pictures,
    streamed_text_bytes,
)
from mova_engine.predict.fp8_cost import copies
from mova_engine.predict.host_memory import encoding, waiting
from mova_engine.predict.job import WIDTHS, Job, PlannedRun, sharded
from mova_engine.predict.muon_cost import MOMENTUM, matrix_parameters
from mova_engine.predict.row_padding import padding
from mova_engine.predict.sampling_activations import kept_video, sampled
from mova_engine.predict.saved_activations import freed_by_layers, saved_activations
from mova_engine.predict.shard_units import gradient_bytes, largest_layer, largest_unit, layer_ahead
from mova_engine.predict.step_traffic import (
    SECOND_EXPERT,
    adapter_parameters,
    component_bytes,
    layer_bytes,
    parameters,
    trained_parameters,
)

_FP32 = WIDTHS["fp32"]
# Layers whose weights are on the device at once where they are gathered or streamed: in use, and the next.
_BUFFERS = 2
_GRADIENTS = "gradients"
_WORKING = "working set of a layer"
# What `MemoryConfig.gathered` and `gradients` hold until a step's last backward.
_GATHERED, _NOT_SUMMED = "weights gathered for the step", "gradients not yet summed over the devices"
_WITHIN_A_STEP = (_GATHERED, _NOT_SUMMED)
# P at once in the backward of a ring's attention: dq 2 and dk, dv 4 in float32; a step's dq, dk, dv 3 and the kernel's
# float32 sum of dq 2; keys, values and their gradients on their way, packed and arriving, 8.
_RING = 19
# P of a layer that has been computed again as far as its self-attention: all of it, or without what is kept.
_BEFORE_ATTENTION = {"full": 10, "selective": 6}
# P of a residual stream with its pending update; of latents, rotary tables, text and velocities while sampling.
_STREAM, _BESIDE = 2, 0.3
# P of a layer that has been computed again, when it is differentiated back to its feed-forward: where heads are
# exchanged, and where not; and in the latter case when it is differentiated back to its self-attention.
_AT_GELU_EXCHANGED, _AT_GELU, _AT_ATTENTION = 27.5, 22.5, 31.2
# P that a bridge keeps for its backward while the block after it is computed again; and where it is computed a third
# time. P of the former kind, at the feed-forward, where that is computed in chunks.
_BRIDGE_KEPT, _BRIDGE_AGAIN = 8.2, 3.3
_AT_CHUNKS = 18.1
# Copies on the host of a clip that is on its way.
_PINNED = 2
_OUTSIDE = "weights outside of layers"
_RING_OF_LAYERS = "layers on their way"
_CODECS_WORK = "codecs' working set"


@dataclass(frozen=True)
class Memory:
    """Bytes on one device by part, in a training step or a denoising step; and bytes of host memory for that device, by
    part.

    stages: bytes on the device in each stage, in the order of the stages. on_host: the largest number of bytes in host
    memory in a stage. shared: the largest number of bytes on device and host together if they are one, as on a CPU.
    """

    device: dict[str, float]
    host: dict[str, float]
    stages: dict[str, float]
    on_host: float
    shared: float

    @property
    def total(self) -> float:
        """Bytes on the device in the stage with the most."""
        return self.stages[self.peak]

    @property
    def peak(self) -> str:
        """The stage with the most bytes on the device."""
        return max(self.stages, key=self.stages.__getitem__)


def memory(run: PlannedRun, machine: Machine | None = None) -> Memory:
    """Predict. Parts that a run does not have are left out. machine: whose operators it is, which may take memory for
    themselves; None: of one whose operators are fused kernels.
    """
    device: dict[str, float] = {}
    host: dict[str, float] = {}
    _weights(run, device, host)
    _added_adapters(run, device, host)
    if run.job.training:
        _training_state(run, device, host)
        device["clips prepared ahead"] = run.implementation.prepared * run.job.batch * _prepared_clip(run.job)
    idle = {part: size for part, size in device.items() if part not in _WITHIN_A_STEP}
    if run.job.training:
        device["time embeddings in float32"] = _time_weights(run)
        for parts, saved in zip((device, host), saved_activations(run), strict=True):
            parts |= {name: value * run.job.batch for name, value in saved.items()}
            if parts is device:
                device["layers gathered and summed ahead"] = layer_ahead(run)
            if run.micro_batches <= run.job.batch and parts is device:
                # One micro-batch: gradients come as activations go.
                activations = freed_by_layers(run) * run.job.batch
                device[_GRADIENTS] = max(device.get(_GRADIENTS, 0) - activations, 0)
        if host:
            # Pinned copies of a clip and its noise, beside what they were made of.
            host["clips on their way to the device"] = _PINNED * run.job.batch * _prepared_clip(run.job)
    device[_WORKING] = _working(run, machine) * run.job.batch
    device["keys and values of the video"] = kept_video(run) * run.job.batch
    if run.implementation.codecs_resident or (run.job.training and run.job.online):
        found = {TRAIN if run.job.training else DENOISE[0]: {**device, **_resident_codecs(run)}}
    else:
        found = _training_stages(run, device, idle) if run.job.training else _sampling_stages(run, device)
    found = {name: {part: value for part, value in parts.items() if value > 0} for name, parts in found.items()}
    totals = {name: sum(parts.values()) for name, parts in found.items()}
    work = max((name for name in (TRAIN, *DENOISE) if name in found), key=totals.__getitem__)
    return Memory(found[work], **_of_host(run, host, found, machine), stages=totals)


def _of_host(
    run: PlannedRun, host: dict[str, float], device: dict[str, dict[str, float]], machine: Machine | None
) -> dict[str, Any]:
    """What `Memory` says of the host. host: what a step has there. device: by stage, what the device has.

    A part that waits on the host, and is on the device meanwhile, is there once where the two are one.
    """
    if run.policy.weights == "files" and (machine is None or machine.kind != "cpu"):
        # What is read goes to the device from a buffer of one layer.
        host["a layer on its way from files"] = _largest_layers(run)
    before: dict[str, float] = {}
    if not run.implementation.codecs_resident:
        host = host | waiting(run)
        before = encoding(run) if run.job.training else {}
    host = {name: value for name, value in host.items() if value > 0}
    pictures = {} if run.job.training or run.implementation.codecs_resident else host_pictures(run)
    most = 0.0
    for name, parts in device.items():
        there = before if name in (ENCODE_CLIPS, ENCODE_TEXT) and run.job.training else host
        there = {**there, **pictures} if name == DECODE_VIDEO else there
        most = max(most, sum(max(parts.get(part, 0.0), there.get(part, 0.0)) for part in {*parts, *there}))
    return {
        "host": host,
        "on_host": max(sum(host.values()) + sum(pictures.values()), sum(before.values())),
        "shared": most,
    }


def _weights(run: PlannedRun, device: dict[str, float], host: dict[str, float]) -> None:
    job, layout, policy = run.job, run.layout, run.policy
    used, everything = parameters(run, used=True), parameters(run, used=False)
    shards = sharded(layout)
    trained = job.task == "full"
    if run.streams_layers:
        device[_OUTSIDE] = sum(component_bytes(run, layers=False).values())
        device[_RING_OF_LAYERS] = STREAM_SLOTS * _largest_layers(run)
        if policy.weights == "host":
            host["weights"] = layer_bytes(run, used=True)
            host[SECOND_EXPERT] = layer_bytes(run, used=False) - host["weights"]
        _adapters(run, device, alone=True)
        return
    place = host if policy.weights_on_host else device
    sizes = {each: (count + padding(run, each)) * _FP32 for each, count in ((True, used), (False, everything))}
    if not trained:
        frozen = component_bytes(run)
        sizes = {True: sum(frozen[name] for name in job.components), False: sum(frozen.values())}
    place["weights"] = sizes[True] / shards
    second = host if policy.expert == "host" else place
    second[SECOND_EXPERT] = (sizes[False] - sizes[True]) / shards
    if trained and shards == 1 and job.width != _FP32:
        device["weights' copies to compute with"] = used * job.width
    elif shards > 1 or policy.weights == "host":
        if policy.gathered == "step" and job.training:
            copies = used * job.width if trained else sizes[True]
            device[_GATHERED] = copies + adapter_parameters(run, used=True) * job.width
        else:
            gathered = _BUFFERS * largest_unit(run)
            device["weights gathered for the layers at work"] = gathered * (job.width if trained else run.frozen_width)
    _adapters(run, place, alone=shards == 1 and place is device)


def _adapters(run: PlannedRun, place: dict[str, float], alone: bool) -> None:
    """Of all adapters. alone: one device has them whole, and a copy in the activations' dtype."""
    adapters = adapter_parameters(run, used=False)
    place["adapters"] = adapters * _FP32 / sharded(run.layout)
    if alone and run.job.width != _FP32:
        place["adapters' copies to compute with"] = adapters * run.job.width


def _added_adapters(run: PlannedRun, device: dict[str, float], host: dict[str, float]) -> None:
    """Of adapters that sampling adds: in the activations' dtype where their layers are (on the device where layers are
    streamed), and on the host as they were read.
    """
    sizes = {name: count * run.job.width for name, count in run.job.added.weights}
    away = 0.0
    if run.policy.expert == "host" and not run.streams_layers:
        away = min(sizes.get(name, 0.0) for name in ("video_dit", "video_dit_2"))
        host["adapters of the second video expert"] = away
    device["adapters"] = device.get("adapters", 0.0) + sum(sizes.values()) - away
    host["adapters as they were read"] = run.job.added.stored


def _largest_layers(run: PlannedRun) -> float:
    """Bytes of the largest layer of each component that runs, which come together where layers are streamed."""
    return sum(largest_layer(run, name) for name in run.job.components) * run.frozen_width


def _training_state(run: PlannedRun, device: dict[str, float], host: dict[str, float]) -> None:
    job, shards = run.job, sharded(run.layout)
    place = host if run.state_on_host else device
    whole = trained_parameters(run, used=True) * _FP32
    place[_GRADIENTS] = whole / shards
    if run.policy.gradients == "step" and run.micro_batches > job.batch:
        # As they are summed, rows take the place of whole ones, unless rows are on the host.
        device[_NOT_SUMMED] = whole - (0 if run.state_on_host else whole / shards)
    device["gradients of the layer at work"] = _layer_gradients(run)
    added = padding(run, used=False) if job.task == "full" else 0
    weights = (trained_parameters(run, used=False) + added) / shards
    matrices = matrix_parameters(run, used=False) / shards
    place["optimizer's moments"] = 2 * (weights - matrices) * _moment_bytes(job) + matrices * MOMENTUM
    if job.ema:
        place["moving average"] = weights * _FP32


def _prepared_clip(job: Job) -> float:
    """Bytes of a clip that waits for its step, all in float32: latents, their noise, text; of pictures the latents of
    the first frame too.
    """
    model, clip = job.model, job.model.clip
    audio, text = model.audio.out_dim * clip.audio_tokens, model.text_tokens * model.video.text_dim
    video = model.video.out_dim * math.prod(clip.latent_shape) * any(name != "audio_dit" for name in job.components)
    return (2 * audio + text + 3 * video) * _FP32


def _moment_bytes(job: Job) -> float:
    """Of one moment of a weight. Half of adapters' weights, those of B, have rows of its rank."""
    if job.moments == "float32":
        return _FP32
    usual = moment_bytes(job.model.video.dim)
    return usual if job.adapters is None else (usual + moment_bytes(job.adapters)) / 2


def _working(run: PlannedRun, machine: Machine | None) -> float:
    """Bytes that are alive inside one layer of both towers."""
    chosen = run.job.components
    video, audio = run.local_video * ("video_dit" in chosen), run.local_audio * ("audio_dit" in chosen)
    if run.job.training:
        return _differentiated(run, video, audio) + copies(run) * (video + audio)
    # Of guidance's evaluations two that differ in text alone share a forward.
    forwards = run.job.evaluations // run.layout.cfg
    together = 1 if run.job.sequential else min(2, forwards)
    # Forwards run side by side where layers are streamed: the streams of those that wait are there too.
    waiting = _STREAM * (forwards - together) * run.streams_layers + _BESIDE * run.implementation.pending_updates
    return (sampled(run, machine) * together + waiting) * (video + audio)


def _differentiated(run: PlannedRun, video: float, audio: float) -> float:
    """All activations of a layer whose weights' gradients come; or what there is when its feed-forward or its
    self-attention is differentiated and few gradients of the layer are there yet, whose place that takes.
    """
    implementation = run.implementation
    passes, ring = implementation.working[0], 0
    if not implementation.pending_updates:
        return passes * (video + audio)
    if run.layout.ring > 1:
        ring = _RING + (_BEFORE_ATTENTION["full" if run.policy.checkpointing == "full" else "selective"])
    # A ring's backward comes before the gradients of the layer's q, k and v.
    rings = ring * video - 3 * run.job.model.video.dim**2 * gradient_bytes(run)
    usual = max(passes * video, rings) + passes * audio
    if run.policy.checkpointing == "none":
        # What layers have kept is counted by itself, and goes as their gradients come.
        return usual
    passes, least = (_AT_GELU_EXCHANGED, 0.0) if run.layout.ulysses > 1 else (_AT_GELU, _AT_ATTENTION)
    if run.policy.chunking == "rows":
        passes, least = _AT_CHUNKS, 0.0
    towers = (video, _bridge_kept(run)), (audio, 0.0)
    again = sum(max(passes * size + kept, least * size) for size, kept in towers)
    return max(usual, again - _layer_gradients(run))


def _bridge_kept(run: PlannedRun) -> float:
    """Bytes that the last layer with a bridge has more than the last of all, less those that the backward has freed
    between them: the block inputs of the layers between and what else they had saved.
    """
    job, bridge = run.job, run.job.model.bridge.layers
    if "dual_tower_bridge" not in job.components or not bridge:
        return 0.0
    layers = job.model.video.num_layers
    freed = (layers - 1 - max(bridge)) * freed_by_layers(run) / layers
    again = run.policy.chunking == "rows" and run.layout.context_parallel == 1
    return max((_BRIDGE_AGAIN if again else _BRIDGE_KEPT) * run.local_video - freed, 0.0)


def _layer_gradients(run: PlannedRun) -> float:
    """Bytes of a layer's gradients as they come, and as they are summed; 0 where they need no place of their own."""
    return largest_unit(run) * gradient_bytes(run)


def _time_weights(run: PlannedRun) -> float:
    """Bytes of the time embeddings' weights in float32, in which they compute whatever the dtype: kept for a backward
    that trains them.
    """
    job, model = run.job, run.job.model
    if job.task != "full" or job.width == _FP32:
        return 0
    chosen = {"video_dit": model.video, "audio_dit": model.audio}
    towers = [tower for name, tower in chosen.items() if name in job.components]
    return sum((7 * tower.dim + tower.freq_dim) * tower.dim * _FP32 for tower in towers)


def _resident_codecs(run: PlannedRun) -> dict[str, float]:
    """Codecs and text encoder that stay on the device in all stages."""
    sizes = codec_bytes(run)
    online = run.job.training and run.job.online and VIDEO_VAE in sizes
    return {
        "codecs": sizes.get(VIDEO_VAE, 0) + sizes.get(AUDIO_VAE, 0),
        PART_NAMES[TEXT_ENCODER]: sizes[TEXT_ENCODER],
        _CODECS_WORK: encode_cost(run.job.model).working_bytes * online,
    }


def _training_stages(run: PlannedRun, step: dict[str, float], idle: dict[str, float]) -> dict[str, dict[str, float]]:
    """Clips are encoded, then captions, before there is a model; samples of a validation are decoded beside the
    weights. step: what a step has on the device; idle: what of that is there between steps.
    """
    sizes = codec_bytes(run)
    vaes = {PART_NAMES[name]: sizes[name] for name in (VIDEO_VAE, AUDIO_VAE) if name in sizes}
    working = encode_cost(run.job.model).working_bytes * (VIDEO_VAE in sizes)
    found = {
        ENCODE_CLIPS: {**vaes, _CODECS_WORK: working},
        ENCODE_TEXT: {PART_NAMES[TEXT_ENCODER]: sizes[TEXT_ENCODER]},
        TRAIN: step,
    }
    if len(vaes) == 2:
        decoded = {DECODE_VIDEO: VIDEO_VAE, DECODE_AUDIO: AUDIO_VAE}
        found |= {stage: {**idle, PART_NAMES[part]: sizes[part]} for stage, part in decoded.items()}
    return found


def _sampling_stages(run: PlannedRun, denoising: dict[str, float]) -> dict[str, dict[str, float]]:
    """What `config.stages` has on the device in each stage, when clips are made again and again; activations while
    denoising alone. denoising: what is there then, with both experts where neither waits on the host.
    """
    job, policy, shards = run.job, run.policy, sharded(run.layout)
    sizes = codec_bytes(run)
    if "weights" in denoising or run.streams_layers:
        sizes |= {n: size / shards for n, size in component_bytes(run, layers=not run.streams_layers).items()}
    ring = {_RING_OF_LAYERS: denoising.get(_RING_OF_LAYERS, 0)}
    rings = {ENCODE_TEXT: {}, ENCODE_FRAMES: {}}
    if run.streams_layers:
        sizes[TEXT_ENCODER], block = streamed_text_bytes(run)
        rings[ENCODE_TEXT] = {_RING_OF_LAYERS: STREAM_SLOTS * block}
    order = [x for x in stages(policy, experts=job.model.experts, sharded=shards > 1) if x.name in SAMPLING]
    rest = {name: value for name, value in denoising.items() if name not in ("weights", SECOND_EXPERT, _OUTSIDE)}
    at_work = {ENCODE_FRAMES: encoding_bytes(run), DECODE_VIDEO: decoding_bytes(run)}
    found = {}
    for name, there in held(order, sizes).items():
        experts = [part for part in there if part in EXPERTS]
        parts = {
            "weights": sum(sizes[part] for part in there if part in COMPONENTS and part not in experts[1:]),
            SECOND_EXPERT: sum(sizes[part] for part in experts[1:]),
            **{PART_NAMES[part]: sizes[part] for part in there if part in PART_NAMES},
        }
        if run.streams_layers:
            parts[_OUTSIDE] = parts.pop("weights") + parts.pop(SECOND_EXPERT)
        parts[_CODECS_WORK] = at_work.get(name, 0.0)
        # The slots of streamed layers are given back while words are encoded; adapters stay where their layers are.
        stay = {"adapters": rest.get("adapters", 0.0) * bool(run.streams_layers or parts.get("weights"))}
        found[name] = {**parts, **(rest if name in DENOISE else {**rings.get(name, ring), **stay})}
    # Shards in the host's memory come layer by layer.
    return found if "weights" in denoising or run.streams_layers else {**found, DENOISE[0]: denoising}
