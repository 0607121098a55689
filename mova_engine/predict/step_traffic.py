"""Bytes that one rank sends, per optimizer step or denoising step.

Convention: an all-to-all, all-gather or reduce-scatter over p ranks sends (p-1)/p of the tensor, an all-reduce
2(p-1)/p of it, a ring of r ranks its shard in each hop.

Ours exchanges video self-attention only: q, k, v and out forward, their gradients backward (Ulysses); and the
video-to-audio bridge's log-sum-exp, weighted outputs and weights in float32 forward, its incoming gradient backward.
The reference exchanges q, k, v and out of every attention of both towers and the bridge, and all of it again in
recomputation.

For tokens that the ranks divide evenly these are the formulas of `mova_engine.predict.context_traffic`, which are exact
to the byte and hold against counts; a test compares the two.
"""

from dataclasses import dataclass, fields

from mova_engine.config.mesh import head_chunks
from mova_engine.config.stages import OFFLOAD_LAYERS
from mova_engine.predict.flops import layer_parameters, parameter_counts
from mova_engine.predict.job import WIDTHS, PlannedRun, copies, sharded
from mova_engine.predict.muon_cost import exchanged_bytes
from mova_engine.predict.saved_activations import on_host

SECOND_EXPERT = "second video expert"
# How often a step takes another video expert than the one before: experts are drawn with the probability of their
# interval, 358 of 1000 and the rest.
_SWITCH = 2 * 0.358 * 0.642


@dataclass(frozen=True)
class StepTraffic:
    """Bytes sent per rank and step, and how many collectives they are.

    all_to_all, ring, reduce: context parallelism. gather, scatter: FSDP. replicas: gradients between copies.
    matrices: whole ones for Muon, and rows of their updates. to_host, from_host: offload. from_files: weights that wait
    in files, which cross the host's bus too.
    """

    all_to_all: float = 0
    ring: float = 0
    reduce: float = 0
    gather: float = 0
    scatter: float = 0
    replicas: float = 0
    matrices: float = 0
    to_host: float = 0
    from_host: float = 0
    from_files: float = 0
    collectives: int = 0

    @property
    def context(self) -> float:
        """Context parallelism's bytes, which the published figures count."""
        return self.all_to_all + self.ring + self.reduce

    def __mul__(self, times: int) -> "StepTraffic":
        return StepTraffic(**{f.name: getattr(self, f.name) * times for f in fields(self)})

    def __add__(self, other: "StepTraffic") -> "StepTraffic":
        return StepTraffic(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


def context_traffic(run: PlannedRun) -> StepTraffic:
    """Traffic of context parallelism for one clip, forward and backward (or for one evaluation)."""
    if run.layout.context_parallel == 1 or "video_dit" not in run.job.components:
        return StepTraffic()
    return _asymmetric(run) if run.implementation.traffic == "asymmetric" else _symmetric(run)


def exchanged_chunks(run: PlannedRun) -> int:
    """In how many collectives a tensor is exchanged for its heads; 0 without Ulysses."""
    ulysses = run.layout.ulysses
    return head_chunks(run.job.model.video.num_heads // ulysses) if ulysses > 1 else 0


def ring_tail(run: PlannedRun) -> float:
    """Bytes of the last gradients of keys and values that a ring sends for one clip, which no attention of the same
    heads covers.
    """
    if not run.job.training or run.layout.ring == 1:
        return 0.0
    width = WIDTHS["fp32"] if run.layout.ring > 2 else run.job.width
    return 2 * run.job.model.video.num_layers * run.local_video * width / run.job.width


def _asymmetric(run: PlannedRun) -> StepTraffic:
    job, layout, policy, model = run.job, run.layout, run.policy, run.job.model
    p, u, r, layers = layout.context_parallel, layout.ulysses, layout.ring, model.video.num_layers
    recomputes = job.training and policy.checkpointing != "none"
    exchanged = 4 * (1 + job.training)  # q, k, v, out; their gradients
    hops = 2 * (r - 1) * job.width  # keys and values
    if job.training:
        # Again, beside their gradients: sums on their way in float32, but for two ranks, where there is nothing to sum.
        hops += 2 * (r - 1) * (job.width + (WIDTHS["fp32"] if r > 2 else job.width))
    if recomputes and policy.checkpointing == "full":
        exchanged, hops = exchanged + 4, hops + 2 * (r - 1) * job.width
    elif recomputes and policy.checkpointing == "out":
        exchanged += 3
    tensor = run.local_video
    heads, bridges = model.bridge.audio_hidden_dim // model.bridge.head_dim, len(model.bridge.layers)
    if "dual_tower_bridge" not in job.components:
        bridges = 0
    queries = model.clip.audio_tokens
    merge = queries * (model.bridge.audio_hidden_dim + 2 * heads) * WIDTHS["fp32"]
    backward = queries * model.bridge.audio_hidden_dim * WIDTHS["fp32"] * job.training
    # Its output and log-sum-exp are kept but by full checkpointing.
    merges = 1 + (recomputes and policy.checkpointing == "full")
    return StepTraffic(
        all_to_all=exchanged * layers * tensor * (u - 1) / u,
        ring=layers * hops * tensor / job.width,
        reduce=bridges * (merge * merges + backward) * 2 * (p - 1) / p,
        collectives=exchanged * layers * exchanged_chunks(run) + bridges * (2 * merges + job.training),
    )


def _symmetric(run: PlannedRun) -> StepTraffic:
    job, layout, model = run.job, run.layout, run.job.model
    u, r, p = layout.ulysses, layout.ring, layout.context_parallel
    passes = 3 if job.training else 1  # forward, recomputed, backward
    audio = model.clip.audio_tokens * job.width / p
    video = model.clip.video_tokens * job.width / p
    d, a, bridges = model.video.dim, model.audio.dim, len(model.bridge.layers)
    in_self = model.video.num_layers * 4 * video * d + model.audio.num_layers * 4 * audio * a
    in_bridge = bridges * 2 * (video * d + audio * d + audio * a + video * a)
    kv_self = 2 * (model.video.num_layers * video * d + model.audio.num_layers * audio * a)
    kv_bridge = 2 * bridges * (audio * d + video * a)
    # Keys and values: forward, recomputed, backward with their gradients, which travel in float32 if by several ranks.
    rounds = 3 + (WIDTHS["fp32"] / job.width if r > 2 else 1) if job.training else 1
    attentions = model.video.num_layers + model.audio.num_layers + 2 * bridges
    return StepTraffic(
        all_to_all=passes * (in_self + in_bridge) * (u - 1) / u,
        ring=rounds * (kv_self + kv_bridge) * (r - 1),
        collectives=passes * 4 * attentions,
    )


def parameters(run: PlannedRun, used: bool) -> int:
    """Number of weights of the components that run. used: of one step; else with both video experts."""
    counts = {name: sum(groups.values()) for name, groups in parameter_counts(run.job.model).items()}
    experts = 1 if used else run.job.model.experts
    return sum(counts[name] * (experts if name == "video_dit" else 1) for name in run.job.components)


def component_bytes(run: PlannedRun, layers: bool = True) -> dict[str, float]:
    """By component that a run has, bytes of weights that are not trained; layers: those of layers included."""
    counts, found = parameter_counts(run.job.model), {}
    for name, each in run.owned.items():
        inside = layer_parameters(counts[each])
        outside = sum(counts[each].values()) - inside
        found[name] = outside * run.job.width + (inside * run.frozen_width if layers else 0.0)
    return found


def layer_bytes(run: PlannedRun, used: bool) -> float:
    """Bytes of the weights of all layers, which are not trained: of one step (`used`), or with both video experts."""
    counts = parameter_counts(run.job.model)
    names = run.job.components if used else run.owned.values()
    return sum(layer_parameters(counts[name]) for name in names) * run.frozen_width


def adapter_parameters(run: PlannedRun, used: bool) -> int:
    """Weights of the adapters on every linear layer of blocks and bridge; 0 without."""
    rank, model = run.job.adapters, run.job.model
    if rank is None:
        return 0

    def tower(d: int, f: int, layers: int) -> int:
        return rank * layers * (8 * 2 * d + 2 * (d + f))

    v, a, bridges = model.bridge.visual_hidden_dim, model.bridge.audio_hidden_dim, len(model.bridge.layers)
    counts = {
        "video_dit": tower(model.video.dim, model.video.ffn_dim, model.video.num_layers)
        * (1 if used else model.experts),
        "audio_dit": tower(model.audio.dim, model.audio.ffn_dim, model.audio.num_layers),
        "dual_tower_bridge": rank * bridges * (2 * 2 * v + 2 * 2 * a + 4 * (v + a)),
    }
    return sum(counts[name] for name in run.job.components)


def trained_parameters(run: PlannedRun, used: bool) -> int:
    """Number of weights that get gradients. used: in one step."""
    if not run.job.training:
        return 0
    return adapter_parameters(run, used) if run.job.task == "lora" else parameters(run, used)


def micro_traffic(run: PlannedRun) -> StepTraffic:
    """Traffic of one clip on its group of ranks: context parallelism, FSDP, offload; without what FSDP does once a
    step.
    """
    job, layout, policy = run.job, run.layout, run.policy
    count, weights = parameters(run, used=True), _gathered_bytes(run)
    passes = 1 + job.training
    down, up = sum(on_host(run).values()), 0.0
    if down:
        # What the last layers keep is used where it is.
        up = down * max(1 - OFFLOAD_LAYERS / _layers(run), 0)
    # In sampling all forwards of a step pass a layer before the next one comes.
    streamed = (passes if job.training else layout.cfg / job.evaluations) * layer_bytes(run, used=True)
    read = streamed * (policy.weights == "files")
    if policy.weights == "host":
        up += streamed if run.streams_layers else passes * weights / sharded(layout)
        if run.state_on_host:
            down += trained_parameters(run, used=True) * WIDTHS["fp32"] / sharded(layout)  # the adapters' gradients
    if policy.optimizer == "host" and sharded(layout) > 1:  # float32 shards come in, and go back as gradients
        up += passes * count * WIDTHS["fp32"] / sharded(layout)
        down += count * WIDTHS["fp32"] / sharded(layout)
    shared = _fsdp(run, passes * (policy.gathered != "step"), job.training and policy.gradients != "step")
    return context_traffic(run) + shared + StepTraffic(to_host=down, from_host=up, from_files=read)


def _gathered_bytes(run: PlannedRun) -> float:
    """Bytes of the weights that one forward uses, as they are gathered."""
    return parameters(run, used=True) * run.job.width if run.job.task == "full" else _frozen_bytes(run, used=True)


def _fsdp(run: PlannedRun, gathers: int, scatters: int) -> StepTraffic:
    """Traffic of so many all-gathers of every weight, and so many reduce-scatters of every gradient in float32."""
    shards = sharded(run.layout)
    if shards == 1:
        return StepTraffic()
    share = (shards - 1) / shards
    return StepTraffic(
        gather=gathers * _gathered_bytes(run) * share,
        scatter=scatters * trained_parameters(run, used=True) * WIDTHS["fp32"] * share,
        collectives=(gathers + scatters) * _layers(run),
    )


def step_traffic(run: PlannedRun) -> StepTraffic:
    """Traffic of one rank in a whole optimizer step or denoising step."""
    if not run.job.training:
        return micro_traffic(run) * (run.job.evaluations // run.layout.cfg)
    layout, policy = run.layout, run.policy
    gradients = trained_parameters(run, used=True) * WIDTHS["fp32"] / sharded(layout)
    whole = policy.optimizer == "host" and sharded(layout) == 1  # gradients out, renewed copies in
    switched = 0.0  # the video expert that waits on the host, when its turn comes
    if (policy.expert, policy.weights, policy.optimizer) == ("host", "device", "device"):
        other = (parameters(run, used=False) - parameters(run, used=True)) * WIDTHS["fp32"]
        if run.job.task != "full":
            other = _frozen_bytes(run, used=False) - _frozen_bytes(run, used=True)
        switched = _SWITCH * other / sharded(layout)
    # Copies of the weights sum their gradients once a step, but where these go to the host after each micro-batch.
    sums = run.micro_batches if run.state_on_host and policy.gradients != "step" else 1
    once = StepTraffic(
        replicas=2 * (copies(layout) - 1) / copies(layout) * gradients * sums,
        matrices=exchanged_bytes(run),
        to_host=gradients * whole + (switched if run.job.task == "full" else 0),
        from_host=gradients * whole * run.job.width / WIDTHS["fp32"] + switched,
        collectives=_layers(run) * (copies(layout) > 1) * sums,
    )
    shared = _fsdp(run, int(policy.gathered == "step"), int(policy.gradients == "step"))
    return micro_traffic(run) * run.micro_batches + shared + once


def _frozen_bytes(run: PlannedRun, used: bool) -> float:
    """Bytes of weights that are not trained: of one step (`used`), or with both video experts."""
    found = component_bytes(run)
    return sum(size for name, size in found.items() if not used or name in run.job.components)


def _layers(run: PlannedRun) -> int:
    """Number of layers of the longest tower that runs."""
    model = run.job.model
    return model.video.num_layers if "video_dit" in run.job.components else model.audio.num_layers
