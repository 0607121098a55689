"""The input of a prediction: a job, its layout over devices, its memory policy, and the implementation that runs it."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mova_engine.config.memory import CHECKPOINTING, PLAIN, TASKS, MemoryConfig
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import ACTIVE_COMPONENTS, MovaConfig
from mova_engine.config.stages import PREPARED_AHEAD
from mova_engine.errors import MovaError, suggest

if TYPE_CHECKING:
    # What makes commands of its settings is not installed everywhere that predictions are made.
    from mova_engine.config.optim_settings import OptimSettings
    from mova_engine.config.train import TrainConfig

WIDTHS = {"fp8": 1, "bf16": 2, "fp32": 4}
# Bytes of a quantised weight with its scales but those of rows: in NF4 one byte for each 64 of them, and four for each
# 256 of those.
_QUANTISED = {"fp8": 1, "int8": 1, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
# Precision of activations -> the dtype's name on the command line and in operators' tables.
DTYPE_NAMES = {"bf16": "bfloat16", "fp32": "float32"}


def precision_of(dtype: str) -> str:
    """The precision of a dtype's name: "bf16" for "bfloat16". Raises MovaError for another dtype."""
    known = {name: precision for precision, name in DTYPE_NAMES.items()}
    return known[choose(dtype, tuple(known), "dtype")]


def choose(value: str, known: tuple[str, ...], what: str) -> str:
    """Return `value` if it is one of `known`; else raise MovaError with the nearest one."""
    if value not in known:
        raise MovaError(f"unknown {what} '{value}'.{suggest(value, known)} Known: {', '.join(known)}")
    return value


@dataclass(frozen=True)
class AddedAdapters:
    """Low-rank updates that are computed beside the weights in sampling.

    weights: pairs of a component and the number of its adapters' weights. stored: bytes of them as they were read,
    which stay on the host to be switched.
    """

    weights: tuple[tuple[str, int], ...] = ()
    stored: int = 0


@dataclass(frozen=True)
class KeptVideo:
    """What a sampling run keeps of the video for evaluations that run the audio tower alone. bridged: evaluations of
    guidance with the bridge, whose keys and values are kept. velocities: those of the video too, where it is made.
    layers: what layers made of it too, for a cache that decides by the first of them. words: of the command that asks
    for it.
    """

    bridged: int
    velocities: bool = False
    layers: bool = False
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class MuonSettings:
    """Of Muon: Newton-Schulz steps of an update, steps between a matrix's updates, and the precision of its products
    (None: the run's).
    """

    newton_schulz_steps: int = 5
    every: int = 1
    precision: str | None = None


@dataclass(frozen=True)
class Job:
    """Training all weights ("full") or adapters ("lora"), or one denoising step ("inference") of `evaluations` forward
    passes.

    precision: of activations, bf16 or fp32. ema: keep a moving average of the trained weights. online: encode clips
    while training, instead of reading latents from a cache. clips: of an optimizer step over all devices; None: one for
    each group of devices that shares a clip. batch: clips of a micro-batch, which affects only memory. sequential: in
    sampling, evaluations that differ only in the text do not share a forward. base: how the files hold the frozen
    weights of layers, a value of memory.frozen. added: adapters that sampling adds. moments: how AdamW's are held, a
    value of optim.moments. muon: of the matrices, None: AdamW alone. kept: what sampling keeps of the video; None: both
    towers run in each evaluation. fp8: trained layers multiply by the device's fp8 products.
    """

    model: MovaConfig
    task: str = "full"
    precision: str = "bf16"
    components: tuple[str, ...] = ACTIVE_COMPONENTS
    lora_rank: int = 16
    ema: bool = False
    online: bool = False
    clips: int | None = None
    batch: int = 1
    evaluations: int = 2
    sequential: bool = False
    base: str = "activations"
    added: AddedAdapters = AddedAdapters()
    moments: str = "float32"
    muon: MuonSettings | None = None
    kept: KeptVideo | None = None
    fp8: bool = False

    def __post_init__(self) -> None:
        choose(self.task, TASKS, "task")
        choose(self.precision, ("bf16", "fp32"), "precision")
        for name, value in (("lora_rank", self.lora_rank), ("clips", self.clips), ("evaluations", self.evaluations)):
            if value is not None and value < 1:
                raise MovaError(f"{name} must be at least 1, got {value}")

    @property
    def training(self) -> bool:
        return self.task != "inference"

    @property
    def adapters(self) -> int | None:
        """The adapters' rank, None where there are none."""
        return self.lora_rank if self.task == "lora" else None

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return WIDTHS[self.precision]


def _muon(settings: "OptimSettings") -> MuonSettings:
    dtype = settings.newton_schulz_dtype
    precision = None if dtype == "run" else precision_of(dtype)
    return MuonSettings(settings.newton_schulz_steps, settings.muon_every, precision)


def training_job(config: "TrainConfig", model: MovaConfig) -> Job:
    """The job of a training run's settings. `clips` is None if `global_batch_size` is."""
    optim = config.optim
    job = Job(
        model,
        precision=precision_of(config.dtype),
        ema=config.optim.ema > 0,
        online=config.loader.encode == "online",
        clips=config.global_batch_size,
        batch=config.loader.batch,
        moments=config.optim.moments,
        muon=_muon(optim) if optim.name == "muon" else None,
        fp8=config.fp8.products == "device",
    )
    if config.lora.rank:
        job = replace(job, task="lora", lora_rank=config.lora.rank)
    if config.task == "audio":
        return replace(job, components=("audio_dit",))
    return job if config.model.bridge else replace(job, components=("video_dit", "audio_dit"))


@dataclass(frozen=True)
class Layout:
    """How devices are arranged. A clip is shared by ring x ulysses of them (context parallel), weights are sharded over
    dp_shard x ring x ulysses (FSDP), and there are `dp_replicate` copies of that. cfg: guidance branches side by side.
    shard: False where every device holds all weights; groups that work on different clips are then `dp_replicate`.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    ring: int = 1
    ulysses: int = 1
    cfg: int = 1
    shard: bool = True

    @property
    def context_parallel(self) -> int:
        """Devices that share a clip."""
        return self.ring * self.ulysses

    @property
    def data_parallel(self) -> int:
        """Groups of devices that each work on a clip of their own."""
        return self.dp_replicate * self.dp_shard

    @property
    def world(self) -> int:
        """Devices in all."""
        return self.data_parallel * self.context_parallel * self.cfg

    def __str__(self) -> str:
        names = ("dp_replicate", "dp_shard", "ring", "ulysses")
        text = " x ".join(f"{name} {getattr(self, name)}" for name in names)
        text += f" x cfg {self.cfg}" if self.cfg > 1 else ""
        if self.world == 1:
            return text
        return text + (f", weights in {sharded(self)} parts" if sharded(self) > 1 else ", all weights on each")


def sharded(layout: Layout) -> int:
    """Number of devices over which one copy of the weights is divided."""
    return layout.dp_shard * layout.context_parallel if layout.shard else 1


def copies(layout: Layout) -> int:
    """Number of copies of the weights, whose gradients are summed."""
    return layout.data_parallel * layout.context_parallel // sharded(layout)


def unsharded(layout: Layout) -> Layout:
    """The same groups of devices with all weights on each device."""
    return replace(layout, dp_replicate=layout.data_parallel, dp_shard=1, shard=False)


def layout_of(shape: MeshShape, shard: bool) -> Layout:
    """The layout of a mesh of processes, with weights divided among them or whole on each."""
    layout = Layout(shape.dp_replicate, shape.dp_shard, shape.ring, shape.ulysses, shape.cfg)
    return layout if shard and sharded(layout) > 1 else unsharded(layout)


@dataclass(frozen=True)
class ImplementationCost:
    """What distinguishes one implementation of MOVA from another, as far as cost is concerned.

    Passes are counted in P, one read or write of all tokens of a tower. Where two numbers are given they are for
    (forward, backward), but for:

    block, bridge: passes of memory-bound operations in a block, and in addition in one with a bridge; None: those of
        the operators that the machine binds (`predict/operator_cost.py`).
    adapters: factor on all of them when low-rank adapters are trained.
    working: P alive inside (a block while it is differentiated, in addition one with a bridge).
    streaming: P alive in inference; of ours, in attention.
    checkpointing: which settings it has.
    inputs_per_bridge: whether a bridge is a checkpointed unit of its own, whose input is saved.
    pending_updates: whether a layer is given the update before it beside the stream, not yet added.
    attention: implementation used in (inference and on one device, training with context parallelism); None: the one
        that the machine binds.
    traffic: "asymmetric" exchanges video self-attention only (the audio tower is replicated), "symmetric" all
        attentions of both towers and the bridge.
    encodes: video encodes per clip. encode_on: by "every" rank of a group, or each a different clip in "rounds".
    codecs_resident: codecs and text encoder stay on the device for the whole run, though latents are cached.
    prepared: micro-batches that wait on the device for the training step.
    """

    name: str
    block: tuple[float, float] | None
    bridge: tuple[float, float] | None
    adapters: float
    working: tuple[float, float]
    streaming: float
    checkpointing: tuple[str, ...]
    inputs_per_bridge: bool
    pending_updates: bool
    attention: tuple[str | None, str | None]
    traffic: str
    encodes: float
    encode_on: str
    codecs_resident: bool
    prepared: int


OURS = "ours"
IMPLEMENTATIONS = {
    row.name: row
    for row in (
        # encodes: of the first-frame condition only what does not repeat itself (codecs/static_tail_cache.py).
        ImplementationCost(
            name=OURS,
            block=None,
            bridge=None,
            adapters=1.0,
            working=(16, 6),
            streaming=5,
            checkpointing=CHECKPOINTING,
            inputs_per_bridge=False,
            pending_updates=True,
            attention=(None, None),
            traffic="asymmetric",
            encodes=1.136,
            encode_on="rounds",
            codecs_resident=False,
            prepared=PREPARED_AHEAD,
        ),
        # The public implementation: 70 and 85 passes counted in a whole block (float64 rotary embedding alone 36);
        # adapters beside each layer are half of all passes of a training step. Bridge: our bridge's share, scaled.
        # working: ours and the float64 copies of q and k (assumed).
        ImplementationCost(
            name="reference",
            block=(70, 85),
            bridge=(25.7, 31.3),
            adapters=2.0,
            working=(40, 15),
            streaming=24,
            checkpointing=("full", "none"),
            inputs_per_bridge=True,
            pending_updates=False,
            attention=(None, "flash-attn-2"),
            traffic="symmetric",
            encodes=2,
            encode_on="every",
            codecs_resident=True,
            prepared=0,
        ),
    )
}


def get_implementation(name: str) -> ImplementationCost:
    """An implementation by name. Raises MovaError for an unknown one."""
    return IMPLEMENTATIONS[choose(name, tuple(IMPLEMENTATIONS), "implementation")]


@dataclass(frozen=True)
class PlannedRun:
    """A job, laid out on devices, by a policy (None: the task's plain one), in an implementation. MovaError where these
    do not go together.
    """

    job: Job
    layout: Layout = field(default_factory=Layout)
    policy: MemoryConfig = None  # pyright: ignore[reportAssignmentType] the task's plain one is put in its place at once
    implementation: ImplementationCost = field(default_factory=lambda: IMPLEMENTATIONS[OURS])

    def __post_init__(self) -> None:
        if self.policy is None:
            object.__setattr__(self, "policy", PLAIN[self.job.task])
        reason = self.misfit()
        if reason:
            raise MovaError(reason)

    def misfit(self) -> str | None:
        """The reason why job, layout and policy cannot be combined, as text; None if they can."""
        layout, heads = self.layout, self.job.model.video.num_heads
        sizes = (layout.dp_replicate, layout.dp_shard, layout.ring, layout.ulysses, layout.cfg)
        if min(sizes) < 1:
            return f"every size of a mesh must be at least 1, got {'x'.join(map(str, sizes))}"
        if heads % layout.ulysses:
            divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            return f"ulysses {layout.ulysses} does not divide the {heads} video heads (divisors: {divisors})"
        if self.implementation.traffic == "symmetric" and self.job.model.audio.num_heads % layout.ulysses:
            heads = self.job.model.audio.num_heads
            return (
                f"ulysses {layout.ulysses} does not divide the {heads} audio heads, which the reference shares out too"
            )
        if layout.cfg not in (1, self.job.evaluations):
            return f"cfg {layout.cfg} must be 1 or the number of evaluations, {self.job.evaluations}"
        if layout.cfg > 1 and self.job.training:
            return "cfg puts guidance branches side by side: inference only"
        if self.job.training and self.job.clips and self.job.clips % layout.data_parallel:
            return f"{self.job.clips} clips a step cannot be split over {layout.data_parallel} groups of devices"
        frozen = self.policy.frozen
        if self.job.task == "full" and frozen != "activations":
            return f"{frozen} holds frozen weights; full training freezes none"
        if frozen != "activations" and self.job.precision != "bf16":
            return f"weights in {frozen} compute in bf16: precision must be bf16"
        if self.job.fp8 and self.job.task != "full":
            return "fp8 products are of weights that are trained: in other tasks memory.frozen fp8 holds them so"
        if self.job.fp8 and self.job.precision != "bf16":
            return "fp8 products give bf16: precision must be bf16"
        if self.job.task == "full" and self.policy.weights == "host":
            return "trained weights go to the host with the optimizer: use memory.optimizer host"
        if self.job.task == "full" and self.policy.weights == "files":
            return "trained weights cannot stay in files: memory.weights files is for weights that are not trained"
        if self.job.task == "lora" and self.policy.optimizer == "host":
            return "adapters are too small to be worth the host: memory.optimizer host is for full training"
        if self.policy.checkpointing not in self.implementation.checkpointing:
            known = ", ".join(self.implementation.checkpointing)
            return f"the implementation '{self.implementation.name}' has no such checkpointing; it has {known}"
        if "video_dit" not in self.job.components and layout.context_parallel > 1:
            return "without the video tower there is no sequence to share: ring and ulysses must be 1"
        return None

    @property
    def streams_layers(self) -> bool:
        """Whether whole layers come to the device one by one (`memory.streaming`), not shards of them."""
        return self.policy.weights != "device" and sharded(self.layout) == 1

    @property
    def state_on_host(self) -> bool:
        """Whether trained weights, their gradients and the optimizer's moments are in host memory."""
        return self.policy.weights_on_host and not self.streams_layers

    @property
    def owned(self) -> dict[str, str]:
        """The components of a run; with two experts both, each as the component whose sizes it has."""
        second = "video_dit" in self.job.components and self.job.model.experts == 2
        return {name: name for name in self.job.components} | ({"video_dit_2": "video_dit"} if second else {})

    @property
    def micro_batches(self) -> int:
        """Clips of an optimizer step in each group of devices; each counts as a micro-batch."""
        return 1 if self.job.clips is None or not self.job.training else self.job.clips // self.layout.data_parallel

    @property
    def frozen_width(self) -> float:
        """Bytes of a layer's frozen weight, including its share of scales: as the policy holds it, or as the files do.
        Weights outside of layers have the width of activations.
        """
        kind = self.quantised
        rows = 4 / self.job.model.video.dim if kind in ("int8", "fp8") else 0.0
        return self.job.width if kind is None else _QUANTISED[kind] + rows

    @property
    def quantised(self) -> str | None:
        """The format of the layers' frozen weights, by the policy or by the files; None: they are plain."""
        kind = self.job.base if self.policy.frozen == "activations" else self.policy.frozen
        return kind if kind in _QUANTISED else None

    @property
    def clips(self) -> int:
        """Clips of one step over all devices."""
        return self.layout.data_parallel * self.micro_batches

    @property
    def local_video(self) -> float:
        """P: bytes of one pass over a rank's video activations."""
        model = self.job.model
        return model.clip.video_tokens * model.video.dim * self.job.width / self.layout.context_parallel

    @property
    def audio_tokens(self) -> int:
        """On one rank: all of them, or a padded share."""
        tokens = self.job.model.clip.audio_tokens
        return (
            tokens if self.implementation.traffic == "asymmetric" else math.ceil(tokens / self.layout.context_parallel)
        )

    @property
    def local_audio(self) -> float:
        """Bytes of one pass over a rank's audio activations."""
        return self.audio_tokens * self.job.model.audio.dim * self.job.width
