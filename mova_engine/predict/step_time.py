"""Seconds of one step by part.

Each matrix product takes the longer of its FLOPs at the achieved GEMM rate and its bytes at the achieved bandwidth; so
does each attention. Memory-bound operations are counted in passes. Collectives take bytes over the achieved link rate
and a latency each. What runs beside computation counts only where computation waits for it: offload beside everything,
exchanges of heads and of a ring beside the attention, FSDP's gathers and scatters beside layers without a bridge. What
is exposed agrees with a simulation of the engine's own streams (`rehearsal.step_clock`); a test compares the two.
"""

from dataclasses import dataclass

from mova_engine.config.model import TowerConfig
from mova_engine.predict.codec_cost import encode_cost
from mova_engine.predict.flops import (
    VIDEO_FEED_FORWARD,
    Attention,
    MatrixProduct,
    layer_parameters,
    operations,
    parameter_counts,
    training_flops,
)
from mova_engine.predict.fp8_cost import product_rate, weight_bytes
from mova_engine.predict.hardware import Hardware
from mova_engine.predict.job import OURS, PlannedRun, copies, sharded
from mova_engine.predict.muon_cost import MOVED, matrix_parameters, newton_schulz_flops
from mova_engine.predict.operator_cost import OperatorCost, attention_rates
from mova_engine.predict.shard_units import largest_layer
from mova_engine.predict.step_traffic import (
    StepTraffic,
    exchanged_chunks,
    parameters,
    ring_tail,
    step_traffic,
    trained_parameters,
)

# Bytes that a fused AdamW moves per weight: weight, two moments and gradient in float32 read, the first three written,
# a bf16 copy; clipping reads the gradient once more. The moving average reads two and writes one.
_ADAMW, _EMA = 34, 12
# P that are read and written to put the chunks of a block's tensors together: feed-forward, queries, keys.
_CHUNK_PASSES = 6


@dataclass(frozen=True)
class StepPrediction:
    """An optimizer step or denoising step. parts: seconds by part; they add up to `seconds`.

    model_flops, hardware_flops: of the step, over all devices. hidden: seconds of traffic that overlaps with
    computation.
    """

    parts: dict[str, float]
    hidden: dict[str, float]
    model_flops: float
    hardware_flops: float
    mfu: float
    hfu: float
    clips: int

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def predict(run: PlannedRun, hardware: Hardware) -> StepPrediction:
    """Predict a run's step on a device."""
    job, layout = run.job, run.layout
    rounds = run.micro_batches if job.training else job.evaluations // layout.cfg
    linears, attentions = matrix_seconds(run, hardware)
    passes = pass_bytes(run, hardware) / (hardware.bandwidth * hardware.achieved.bandwidth)
    parts = {"GEMM": rounds * linears, "attention": rounds * attentions, "memory-bound passes": rounds * passes}
    hidden: dict[str, float] = {}
    _communication(run, hardware, step_traffic(run), parts, hidden)
    if job.training:
        parts["encode"] = run.micro_batches * encode_seconds(run, hardware)
        parts["optimizer"] = _optimizer_seconds(run, hardware)
    flops, recomputed = step_flops(run)
    seconds = sum(parts.values())
    rate = seconds * layout.world * hardware.peak_flops(job.precision)
    return StepPrediction(parts, hidden, flops, recomputed, flops / rate, recomputed / rate, run.clips)


def step_flops(run: PlannedRun) -> tuple[float, float]:
    """(model FLOPs, hardware FLOPs) of a step over all devices, by the conventions of mova_engine.predict.flops."""
    job = run.job
    if not job.training:
        flops = sum(op.flops for op in operations(job.model, job.components)) * job.evaluations
        return flops * run.layout.data_parallel, flops * run.layout.data_parallel
    cost = training_flops(job.model, components=job.components, lora_rank=job.adapters)
    hardware = {
        "none": cost.hardware,
        "selective": cost.hardware_selective,
        "out": cost.hardware_selective,
        "full": cost.hardware_full,
    }
    chunks = [op for op in operations(job.model, job.components) if _in_chunks(op, run)]
    again = sum(op.flops + op.adapter_flops(job.adapters) for op in chunks if isinstance(op, MatrixProduct))
    return cost.model * run.clips, (hardware[run.policy.checkpointing] + again) * run.clips


def _in_chunks(op: MatrixProduct | Attention, run: PlannedRun) -> bool:
    """Whether it is computed in chunks of tokens, and in training once more by the backward."""
    return run.policy.chunking == "rows" and op.part == VIDEO_FEED_FORWARD


def executed(op: MatrixProduct | Attention, run: PlannedRun) -> tuple[float, float, float]:
    """How many times the forward FLOPs of an operation are executed for one clip: (forward, recomputed, backward)."""
    job, policy = run.job, run.policy
    if not job.training:
        return 1, 0, 0
    if isinstance(op, Attention):
        recomputed = policy.checkpointing == "full" or (policy.checkpointing != "none" and not op.kept)
        return 1, recomputed, 2.5
    full = job.task == "full"
    dgrad = {"input": False, "condition": full, "hidden": True}[op.source]
    recomputed = (policy.checkpointing != "none" and op.in_block) + _in_chunks(op, run)
    return 1, recomputed, dgrad + full


def rank_share(op: MatrixProduct | Attention, run: PlannedRun) -> float:
    """Share of an operation's rows that one rank works on: video tokens are split over the group, the audio tower and
    the text are replicated in it (ours), or audio is split too (the reference).
    """
    clip, cp = run.job.model.clip, run.layout.context_parallel
    rows = (op.nq, op.nk) if isinstance(op, Attention) else (op.rows,)
    if op.component != "audio_dit" and clip.video_tokens in rows:
        return 1 / cp
    if clip.audio_tokens in rows:
        return run.audio_tokens / clip.audio_tokens
    return 1.0


def matrix_seconds(run: PlannedRun, hardware: Hardware) -> tuple[float, float]:
    """(matrix products, attention) of one clip on one rank, forward and backward, or of one evaluation."""
    job, achieved = run.job, hardware.achieved
    gemm = hardware.peak_flops(job.precision) * achieved.gemm
    bandwidth = hardware.bandwidth * achieved.bandwidth
    in_training = job.training and run.layout.context_parallel > 1
    kernel = run.implementation.attention[in_training]
    saved = run.implementation.name == OURS and job.training and run.policy.checkpointing in ("selective", "out")
    rates = {kept: attention_rates(hardware, job, kept and saved, kernel) for kept in (False, True)}
    weight = run.frozen_width if job.task != "full" else job.width
    linears = attentions = 0.0
    for op in operations(job.model, job.components):
        forward, recomputed, backward = executed(op, run)
        share = rank_share(op, run)
        flops = op.flops * share
        if isinstance(op, Attention):
            forward_rate, backward_rate = rates[op.kept]
            traffic = op.layers * op.width * 2 * (op.nq + op.nk) * share * job.width
            attentions += (forward + recomputed) * max(flops / forward_rate, traffic / bandwidth)
            attentions += backward * max(flops / backward_rate, traffic / bandwidth)
            continue
        traffic = op.layers * (op.k * op.n * weight + op.rows * share * (op.k + op.n) * job.width)
        rate = product_rate(op, run, hardware)
        linears += (forward + recomputed + backward) * max(flops / rate, traffic / bandwidth)
        linears += weight_bytes(op, run, forward + recomputed, backward > 1) / bandwidth
        adapter = op.adapter_flops(job.adapters) * share
        linears += adapter * (3 + recomputed) / gemm
    return linears, attentions


def pass_bytes(run: PlannedRun, hardware: Hardware) -> float:
    """Bytes that memory-bound operations move for one clip on one rank, forward and backward, or for one evaluation."""
    job, implementation, model = run.job, run.implementation, run.job.model
    forwards, backwards, chunks = 1, 0, 0.0
    if job.training:
        forwards, backwards = 1 + (run.policy.checkpointing != "none"), 1

    def passes(kind: tuple[float, float]) -> float:
        return (forwards * kind[0] + backwards * kind[1]) * (implementation.adapters if job.task == "lora" else 1)

    def tower(dims: TowerConfig, other: TowerConfig, bytes_a_pass: float) -> float:
        block, bridge = implementation.block, implementation.bridge
        if block is None or bridge is None:
            block, bridge = cost.block(dims), cost.bridge(dims.dim, other.dim)
        return (passes(block) * dims.num_layers + passes(bridge) * bridges) * bytes_a_pass

    if run.policy.chunking == "rows":
        chunks = (forwards + backwards) * _CHUNK_PASSES * model.video.num_layers * run.local_video
    recomputed = job.training and run.policy.checkpointing != "none"
    cost = OperatorCost(hardware.machine, job, run.policy.frozen == "fp8", recomputed)
    bridges = len(model.bridge.layers) * ("dual_tower_bridge" in job.components)
    video = tower(model.video, model.audio, run.local_video) * ("video_dit" in job.components)
    return chunks + video + tower(model.audio, model.video, run.local_audio) * ("audio_dit" in job.components)


def encode_seconds(run: PlannedRun, hardware: Hardware) -> float:
    """Seconds that a rank spends, or waits, for encoding one clip; 0 with cached latents."""
    if not run.job.online:
        return 0.0
    cost, achieved, implementation = encode_cost(run.job.model), hardware.achieved, run.implementation
    conv = hardware.peak_flops("bf16") * achieved.conv
    seconds = cost.text_flops / (hardware.peak_flops("bf16") * achieved.gemm)
    if "video_dit" in run.job.components:
        seconds += implementation.encodes * cost.video_flops / conv
    if "audio_dit" in run.job.components:
        seconds += cost.audio_flops / (hardware.peak_flops("fp32") * achieved.conv)
    return seconds / (run.layout.context_parallel if implementation.encode_on == "rounds" else 1)


def _optimizer_seconds(run: PlannedRun, hardware: Hardware) -> float:
    """The update of a rank's share of the weights trained in this step; a moving average follows all of them. What is
    not divided every rank orthogonalises.
    """
    matrices = matrix_parameters(run, used=True)
    moved = (_ADAMW * (trained_parameters(run, used=True) - matrices) + MOVED * matrices) / sharded(run.layout)
    if run.job.ema:
        moved += _EMA * trained_parameters(run, used=False) / sharded(run.layout)
    products = newton_schulz_flops(run) / sharded(run.layout)
    precision = (run.job.muon and run.job.muon.precision) or run.job.precision
    seconds = products / (hardware.peak_flops(precision) * hardware.achieved.gemm)
    if run.state_on_host:
        return seconds + moved / hardware.host_rate
    return seconds + moved / (hardware.bandwidth * hardware.achieved.bandwidth)


def link_rate(hardware: Hardware, group: int, span: int, neighbours: bool = False) -> float:
    """Bytes/s at which a rank sends within a group of `group` ranks that lie within `span` consecutive devices.

    neighbours: it sends to one other rank only (a ring); else to all at once.
    """
    if span > hardware.link.devices:
        return hardware.network * hardware.achieved.link
    return hardware.link.all_to_all(2 if neighbours else group) * hardware.achieved.link


def _communication(
    run: PlannedRun, hardware: Hardware, traffic: StepTraffic, parts: dict[str, float], hidden: dict[str, float]
) -> None:
    """Add seconds of communication and offload to `parts`, and those that overlap with computation to `hidden`."""
    job, layout = run.job, run.layout
    everything = sharded(layout) * copies(layout)
    sums = traffic.reduce / link_rate(hardware, layout.context_parallel, layout.context_parallel)
    sums += traffic.matrices / link_rate(hardware, sharded(layout), sharded(layout))
    sums += traffic.collectives * hardware.latency
    replicas = traffic.replicas / link_rate(hardware, copies(layout), everything)
    exchange = traffic.all_to_all / link_rate(hardware, layout.ulysses, layout.ulysses)
    to_next = link_rate(hardware, layout.ring, layout.context_parallel, neighbours=True)
    ring = traffic.ring / to_next
    beside = parts["attention"] * (layout.ring - 1) / layout.ring
    shards = (traffic.gather + traffic.scatter) / link_rate(hardware, sharded(layout), sharded(layout))
    copied = traffic.from_files if hardware.host_bandwidth is not None else 0.0
    offloaded = max(traffic.to_host, traffic.from_host + copied)
    bus = offloaded / hardware.host_rate if offloaded else 0.0
    # A thread reads a layer and copies it before it reads the next.
    bus += traffic.from_files / hardware.disk_bandwidth
    computing = parts["GEMM"] + parts["attention"] + parts["memory-bound passes"]
    waits = {
        "Ulysses": exchange,
        "ring": max(0.0, ring - beside),
        "FSDP": max(0.0, shards - computing),
        "copies' gradients": replicas,
    }
    if run.implementation.name == OURS:
        waits["Ulysses"] = _exposed_exchange(run, exchange, parts["attention"])
        if run.policy.prefetch != "unit" and everything <= hardware.link.devices:
            # The next layer's weights come over the links of the forward's exchanges, which then take twice as long.
            waits["Ulysses"] += waits["Ulysses"] / (1 + job.training)
        tail = run.micro_batches * ring_tail(run) / to_next / max(1, exchanged_chunks(run))
        waits["ring"] = max(waits["ring"], tail)
        waits["FSDP"] = max(waits["FSDP"], _exposed_shards(run, hardware, shards, traffic))
        if hardware.machine.sums_in_backward or sharded(layout) > 1:
            # Beside the last backward.
            waits["copies' gradients"] = max(0.0, replicas - _last_backward(run, computing))
    parts["communication"] = sums + sum(waits.values())
    parts["offload"] = max(0.0, bus - computing)
    whole = {"Ulysses": exchange, "ring": ring, "FSDP": shards, "copies' gradients": replicas, "offload": bus}
    for name, seconds in whole.items():
        rest = seconds - waits.get(name, parts["offload"])
        if rest > 0:
            hidden[name] = rest


def _last_backward(run: PlannedRun, computing: float) -> float:
    """Seconds of the last micro-batch's backward, recomputation included, of a step that computes for so many."""
    share = 1 - 1 / (2 + (run.job.task == "full") + (run.policy.checkpointing != "none"))
    return computing * share * min(1.0, run.job.batch / run.micro_batches)


def _exposed_exchange(run: PlannedRun, exchange: float, attention: float) -> float:
    """Seconds of Ulysses' exchanges, which take `exchange`, that computation waits for.

    Of four tensors that a layer exchanges in each direction, two wait: one of q, k and v, beside which nothing is left
    to compute, and the output; and of these one chunk of heads, since others travel beside the attention.
    """
    chunks = exchanged_chunks(run)
    if not chunks:
        return 0.0
    return max(exchange / (2 * chunks), exchange - attention * (chunks - 1) / chunks)


def _exposed_shards(run: PlannedRun, hardware: Hardware, shards: float, traffic: StepTraffic) -> float:
    """Seconds of FSDP's gathers and scatters, which take `shards`, that computation waits for.

    FSDP gathers a unit while the two before it run, and a unit's gradients wait for those of the one before it. Beside
    a video block, whose weights are most of a layer's, units of the bridge have little to compute: of a layer with
    a bridge nothing is hidden but what the forward's bridge covers. Other layers hide all of it.

    With `MemoryConfig.prefetch` a layer is gathered while the one before it runs, in the forward and in the backward,
    and the first one of each waits. So do gradients of bridged video blocks, unless they too are summed beside a layer.
    """
    model = run.job.model
    bridges = len(model.bridge.layers) if {"video_dit", "dual_tower_bridge"} <= set(run.job.components) else 0
    sent = traffic.gather + traffic.scatter
    if not bridges or not sent:
        return 0.0
    if run.policy.prefetch != "unit":
        of_first, of_gradients = _waiting_shares(run, bridges)
        return shards * (traffic.gather * of_first + traffic.scatter * of_gradients) / sent
    flops = sum(
        op.flops * rank_share(op, run)
        for op in operations(model, ("dual_tower_bridge",))
        if isinstance(op, MatrixProduct)
    )
    forwards = run.micro_batches if run.job.training else run.job.evaluations // run.layout.cfg
    covered = forwards * flops / (hardware.peak_flops(run.job.precision) * hardware.achieved.gemm)
    counts = parameter_counts(model)
    blocks = layer_parameters(counts["video_dit"]) * bridges / model.video.num_layers
    blocks += layer_parameters(counts["dual_tower_bridge"])
    exposed = shards * blocks / parameters(run, used=True)
    passes = 1 if run.policy.gathered == "step" else 1 + run.job.training
    forward = exposed * traffic.gather / sent / passes
    return exposed - min(forward, covered)


def _waiting_shares(run: PlannedRun, bridges: int) -> tuple[float, float]:
    """Of weights that are gathered a layer ahead, and of their gradients, the shares that computation waits for."""
    sizes = {name: largest_layer(run, name) for name in run.job.components}
    counts = parameter_counts(run.job.model)
    outside = sum(sum(counts[name].values()) - layer_parameters(counts[name]) for name in sizes)
    block, whole = sizes["video_dit"], parameters(run, used=True)
    last = sum(sizes.values()) if run.policy.prefetch == "all" else bridges * block
    return (outside + block + sizes["dual_tower_bridge"]) / whole, (outside + last) / whole
