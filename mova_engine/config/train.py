"""What a training run is made of, as typed and validated settings. Recipes and the command line fill them in.

Every field is an option of the command line under its dotted name: `--optim.lr 1e-3`, `--model.no-bridge`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.buckets import BucketSettings
from mova_engine.config.byte_sizes import check_bytes
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import section
from mova_engine.config.data_mix import WeightedFolder, parse_mix
from mova_engine.config.diffusion import DiffusionSettings
from mova_engine.config.fp8 import Fp8Settings
from mova_engine.config.limits import check, check_least, check_seed, check_threads
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.mesh import MeshShape, accumulation, choose_mesh
from mova_engine.config.model import COMPONENTS, get_preset
from mova_engine.config.optim_settings import OptimSettings
from mova_engine.config.parallel import ParallelConfig
from mova_engine.errors import MovaError


@dataclass(frozen=True)
class ModelSettings:
    """What is trained."""

    preset: str = "nano"
    """Size of a model trained from scratch: nano, bench-mid, mova-360p, mova-720p."""
    checkpoint: Path | None = None
    """What to start from: a model folder, a training run (its newest checkpoint) or a Hugging Face cache folder; its
    towers' sizes win over the preset's.
    """
    init_from_scratch: tuple[str, ...] = ()
    """Components that the checkpoint lacks and that start from scratch, e.g. dual_tower_bridge; sizes: the preset's."""
    audio_from: Path | None = None
    """Of a joint run: what the audio tower starts from, a run of the audio task or a model folder. The other components
    start as without it. The audio codec's fitted scale comes with the tower, unless codecs names a folder.
    """
    codecs: Path | None = None
    """Model folder, or run, whose codecs and text encoder are used; default: the checkpoint's."""
    bridge: bool = True
    """Train with the bridge; without it neither direction exists (an ablation)."""
    aligned_rope: bool = True
    """Put video frames on the audio's time axis in the bridge; without it frame i sits at position i (an ablation)."""

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            get_preset(self.preset)
        else:
            check(self.bridge, "model.bridge can be left out only of a model that is trained from scratch")
        for name in self.init_from_scratch:
            known = f"Known: {', '.join(COMPONENTS)}"
            check(name in COMPONENTS, f"model.init_from_scratch: unknown component '{name}'. {known}")
        check(
            self.audio_from is None or "audio_dit" not in self.init_from_scratch,
            "model.audio_from says what audio_dit starts from, model.init_from_scratch that it starts from nothing",
        )


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters on a frozen model, instead of training its weights."""

    rank: int = 0
    """Rank of the adapters; 0: none, all weights are trained."""
    alpha: float | None = None
    """Their output counts alpha / rank; default: the rank, or what the file says that `init` names."""
    rank_stabilised: bool = False
    """Their output counts alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023); files say it as alpha * sqrt(rank)."""
    init: Path | None = None
    """Adapters to start from, to train them on other clips: a file, or a run of adapters. Its rank and layers must be
    those asked for; its alpha is kept.
    """
    targets: tuple[str, ...] = ("q", "k", "v", "o", "ffn.0", "ffn.2")
    """The adapted layers, by the last parts of their names: all products of blocks and bridge by default."""
    words: tuple[str, ...] = ()
    """Words of the captions that call up what is learnt; the adapters' card and metadata name them."""
    export: tuple[str, ...] = ()
    """Dialects in which the finished adapters are written too, such as comfy and diffusers (docs/adapters.md)."""

    def __post_init__(self) -> None:
        check_least(self, "lora.", rank=0)
        usable = self.alpha is None or (self.alpha > 0 and math.isfinite(self.alpha))
        check(usable, f"lora.alpha must be a positive number, got {self.alpha}")
        check(len(self.targets) > 0, "lora.targets names no layer")
        for name, given in (
            ("init", self.init is not None),
            ("export", bool(self.export)),
            ("rank_stabilised", self.rank_stabilised),
        ):
            check(not given or self.rank > 0, f"lora.{name} needs lora.rank: give it, or a recipe such as lora")
        check(
            not self.rank_stabilised or self.init is None,
            "lora.rank_stabilised is for new adapters: those of lora.init have their scale, which stays",
        )


@dataclass(frozen=True)
class LoaderSettings:
    """How clips reach the model."""

    batch: int = 1
    """Clips that a group of processes works on at once: a micro-batch."""
    workers: int = 0
    """Processes that read and decode; 0 reads in the trainer's own."""
    cache: Path | None = None
    """Folder that keeps latents and text features, by content; default: `cache` beside the clips."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the cache stores them, as `mova encode --dtype`: bfloat16 takes half the space and rounds."""
    on_bad_clip: Literal["skip", "stop"] = "skip"
    """What to do with a clip that is broken or too short: leave it out and say so, or refuse to start."""
    changed: Literal["stop", "go-on"] = "stop"
    """Where a run goes on and clips were added or are gone: stop, or go on with the next epoch of those there are."""
    silent_audio: Literal["refuse", "zeros", "mask"] = "refuse"
    """A clip without sound (no track, a silent one, or for less than half of the clip): refuse it, learn its silence
    (zeros), or learn its pictures alone (mask).
    """
    preload: bool | None = None
    """Keep all latents in memory; default: where they take less than 2 GiB, of a mix those of a source. Workers then
    have nothing to do.
    """
    cut_every: float | None = None
    """Cut each file into several clips, one beginning every so many seconds as long as the file lasts; default: one
    clip, where the file or its `start` begins.
    """
    encode: Literal["ahead", "online"] = "ahead"
    """Encode all clips before the first step, or each when it is first wanted."""
    num_fit_clips: int = 256
    """From how many clips a new model's embedded codecs take the scale of their latents."""
    synthetic_clips: int = 0
    """Without --data: write so many clips into `OUT/data` and train on them; 0: none."""
    synthetic: Literal["bounces", "sounds"] = "bounces"
    """What these show: balls that bounce and click, or, for the audio task, notes that their captions describe."""
    synthetic_midway: float = 0.0
    """Share of those clips that begin in the middle of the motion, anywhere, instead of with the ball at rest."""

    def __post_init__(self) -> None:
        check_least(self, "loader.", batch=1, workers=0, num_fit_clips=1, synthetic_clips=0)
        usable = self.cut_every is None or 0 < self.cut_every < math.inf
        check(usable, f"loader.cut_every must be a positive number of seconds, got {self.cut_every}")
        check(0 <= self.synthetic_midway <= 1, f"loader.synthetic_midway must lie in 0..1, got {self.synthetic_midway}")


@dataclass(frozen=True)
class CheckpointSettings:
    """When to save, and what to keep."""

    every: int = 1000
    """Steps between checkpoints; the last step is saved too."""
    keep_last: int = 2
    """How many of the newest to keep."""
    keep_every: int = 0
    """Keep those of every so many steps for good; 0: none."""
    on_error: Literal["stop", "continue"] = "stop"
    """When one cannot be written (full disk): stop, or train on; the last good one stays either way."""

    def __post_init__(self) -> None:
        check_least(self, "checkpoint.", every=1, keep_last=1, keep_every=0)


@dataclass(frozen=True)
class ValidationSettings:
    """Held-out loss and samples along the way."""

    every: int = 0
    """Steps between validations; 0: none."""
    at_start: bool = False
    """Validate before the first step too."""
    data: Path | None = None
    """Folder or list of held-out clips."""
    synthetic_clips: int = 0
    """Without --validation.data: write so many held-out clips of `loader.synthetic` into `OUT/heldout`."""
    clips: int = 32
    """How many clips the held-out loss is taken over."""
    samples: int = 0
    """How many held-out clips to sample at each validation; 0: none. The audio task samples none."""
    prompt: tuple[str, ...] = ()
    """Prompts to sample at each validation, with or without held-out clips; each may end in `--i FILE`, a first frame,
    and `--d SEED`.
    """
    prompts: Path | None = None
    """The same in a file: .txt with one prompt a line, or a folder of clips (caption and first frame of each)."""
    steps: int | None = None
    """Denoising steps of the samples; default: the model's, mostly 50."""
    scores: tuple[str, ...] = ()
    """Scores to measure the samples by, such as speech-lag, loudness, dnsmos (`mova eval scores` has them all): beside
    the training, by the first process. Clips of bouncing balls are measured by their clicks too.
    """
    weights: Path | None = None
    """Folder of the weights that those scores need, as of `mova eval --weights`."""
    accept_noncommercial: bool = False
    """Use weights whose licence forbids commercial use."""

    def __post_init__(self) -> None:
        check_least(self, "validation.", every=0, synthetic_clips=0, clips=1, samples=0, steps=1)
        given = self.data is not None or self.synthetic_clips > 0 or self.has_prompts
        check(
            not self.every or given,
            "validation.every asks for validation: give --validation.data, a folder of held-out clips, or "
            "--validation.prompt, what to sample",
        )
        check(
            self.every > 0 or not self.has_prompts, "prompts of validation are sampled at --validation.every: give it"
        )
        check(
            not self.scores or (self.every > 0 and (self.samples > 0 or self.has_prompts)),
            "validation.scores measure samples: give --validation.every, and --validation.samples or validation.prompt",
        )

    @property
    def has_prompts(self) -> bool:
        """Whether samples are made of prompts."""
        return bool(self.prompt) or self.prompts is not None


@dataclass(frozen=True)
class LogSettings:
    """What is reported."""

    every: int = 10
    """Steps between rows of metrics.jsonl, each a mean over them."""
    tensorboard: bool = True
    """Also write TensorBoard's event files."""

    def __post_init__(self) -> None:
        check_least(self, "log.", every=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    name: str = "custom"
    """Name of the run; default: the recipe's."""
    data: tuple[Path, ...] = ()
    """Folder of clips (with metadata.jsonl or metadata.json, or a caption a.txt beside each a.mp4), or list of clips
    (.jsonl, .csv, .parquet); or several.
    """
    mix: tuple[str, ...] = ()
    """Instead of --data several such sources, mixed by weight: `music:3 sounds speech:0.5`. A weight of 1 need not be
    said, and only ratios count: of these, music gives twice as many clips as the others together.
    """
    out: Path | None = None
    """Folder of the run; default: `runs/NAME`."""
    device: str | None = None
    """cpu, cuda or npu; default: the first of npu, cuda, cpu that works."""
    threads: int | None = None
    """CPU threads; default: one for models too narrow to share their work, else PyTorch's choice."""
    resume: str = "auto"
    """auto: from OUT's newest checkpoint where there is one. none: start anew. Or the folder of a checkpoint."""
    seed: int = 0
    """Determines all random numbers: weights, order of clips, noise levels, noise, text dropout."""
    steps: int = 1000
    """Optimizer steps in all."""
    global_batch_size: int | None = None
    """Clips of one optimizer step over all processes; gradients are accumulated over as many micro-batches as that
    takes. Default: one micro-batch, of loader.batch clips in each group of processes.
    """
    task: Literal["joint", "audio"] = "joint"
    """Both towers and the bridge, or the audio tower alone (its pre-training)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; weights, their moments and summed gradients are float32 in either case."""
    exact_fp32: bool = False
    """Switch off reduced-precision shortcuts (TF32, HF32) of the device's float32 maths."""
    deterministic: bool = False
    """The same bits in each run of the same settings on the same machine; what cannot is refused. Slower on a GPU."""
    debug: Literal["none", "nan"] = "none"
    """nan: run the first step that is not finite again, to name layer and operator, and stop. Else it costs nothing."""
    ops: dict[str, str] = field(default_factory=dict[str, str])
    """Implementations that must be used, by operator: `--ops.attention reference`. See mova ops."""
    model: Annotated[ModelSettings, section("Model")] = field(default_factory=ModelSettings)
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)
    buckets: Annotated[BucketSettings, section("Clips")] = field(default_factory=BucketSettings)
    lora: Annotated[LoraSettings, section("Adapters")] = field(default_factory=LoraSettings)
    loader: Annotated[LoaderSettings, section("Data")] = field(default_factory=LoaderSettings)
    diffusion: Annotated[DiffusionSettings, section("Diffusion")] = field(default_factory=DiffusionSettings)
    optim: Annotated[OptimSettings, section("Optimizer")] = field(default_factory=OptimSettings)
    fp8: Annotated[Fp8Settings, section("Products in fp8")] = field(default_factory=Fp8Settings)
    checkpoint: Annotated[CheckpointSettings, section("Checkpoints")] = field(default_factory=CheckpointSettings)
    validation: Annotated[ValidationSettings, section("Validation")] = field(default_factory=ValidationSettings)
    log: Annotated[LogSettings, section("Logs")] = field(default_factory=LogSettings)
    parallel: Annotated[ParallelConfig, section("Several processes")] = field(default_factory=ParallelConfig)
    memory: Annotated[MemoryConfig, section("Memory")] = field(default_factory=MemoryConfig)
    vram: Annotated[str | None, section("Memory")] = None
    """The most of the device's memory to use, such as 12GB or 12GiB; default: what is free."""
    ram: Annotated[str | None, section("Memory")] = None
    """The most of the host's memory to use, over all processes of a machine; default: what is free."""

    def __post_init__(self) -> None:
        check_least(self, "", steps=1, global_batch_size=1)
        check_threads(self.threads)
        check_seed(self.seed)
        check(not (self.data and self.mix), "--data and --mix both say what to train on: leave one of them out")
        parse_mix(self.mix)
        check(
            self.loader.synthetic == "bounces" or self.task == "audio",
            "loader.synthetic sounds have no pictures to learn: task must be audio, or loader.synthetic bounces",
        )
        check(
            self.task == "joint" or (self.model.bridge and self.model.aligned_rope),
            "model.bridge and model.aligned_rope concern joint training; the audio task has no bridge",
        )
        self.buckets.check_task(self.task)
        check(
            self.task == "joint" or self.parallel.context_parallel == 1,
            "parallel.context_parallel shares video tokens, which the audio task has none of: leave it at 1",
        )
        check(
            self.task == "joint" or not self.diffusion.bridge_dropout,
            "diffusion.bridge_dropout concerns joint training; the audio task has no bridge",
        )
        check(
            self.task == "joint" or self.memory.chunking == "none",
            "memory.chunking rows is for the many tokens of video, which the audio task has none of: leave it out",
        )
        given = self.diffusion.of_task(self.task)
        check(
            self.loader.silent_audio != "mask" or not (given.given_audio or given.given_start),
            "diffusion.given_audio and given_start give any clip's sound, but loader.silent_audio mask keeps clips "
            "that have none: set both to 0, or use refuse",
        )
        check(
            self.task == "joint" or self.loader.silent_audio != "mask",
            "loader.silent_audio mask learns a silent clip's pictures alone; the audio task has none: use refuse",
        )
        check(
            not self.lora.rank or (self.task == "joint" and not self.model.init_from_scratch),
            "lora.rank adapts a whole trained model: task must be joint and model.init_from_scratch empty",
        )
        check(
            self.model.audio_from is None or (self.task == "joint" and not self.lora.rank),
            "model.audio_from is for joint training of all weights; the audio task and adapters start from "
            "model.checkpoint",
        )
        check(self.parallel.cfg == 1, "parallel.cfg shares guidance's evaluations: it is for sampling alone")
        check(
            self.lora.rank > 0 or self.optim.lora_plus == 1,
            "optim.lora_plus concerns adapters: give lora.rank, or a recipe such as lora",
        )
        check(
            self.optim.moments == "float32" or "adamw" not in self.ops,
            "ops.adamw names a step with float32 moments: leave it out, or optim.moments 8bit",
        )
        check_bytes(vram=self.vram, ram=self.ram)
        check(
            self.lora.rank > 0 or (self.vram is None and self.ram is None),
            "--vram and --ram limit runs of adapters (lora.rank) and sampling: ask mova plan what full training needs",
        )
        self.memory.check("lora" if self.lora.rank else "full", self.parallel.shard)
        self.fp8.check_run(self.dtype, self.lora.rank > 0)

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        return self.out if self.out is not None else Path("runs") / self.name

    @property
    def operator_choices(self) -> dict[str, str]:
        """Implementations that must be used, by operator: those that settings ask for, under those named in `ops`."""
        return self.fp8.choices | self.ops

    @property
    def mixed(self) -> tuple[WeightedFolder, ...]:
        """The sources of `mix`."""
        return parse_mix(self.mix)

    def mesh(self, heads: int, world: int) -> MeshShape:
        """The mesh that a run makes of `world` processes. heads: attention heads of the video tower.

        Raises MovaError for settings that the number of processes does not allow.
        """
        settings = self.parallel
        if world == 1 and settings.context_parallel > 1:
            raise MovaError(
                f"parallel.context_parallel is {settings.context_parallel}, but this is one process: start so many "
                f"with torchrun --nproc-per-node {settings.context_parallel}, or set --parallel.context-parallel 1"
            )
        if world == 1 and settings.shard:
            raise MovaError(
                "parallel.shard divides the weights among processes, but this is one: start several with torchrun "
                "--nproc-per-node 2, or set --parallel.no-shard"
            )
        shape = choose_mesh(
            world,
            heads,
            context_parallel=settings.context_parallel,
            ulysses=settings.ulysses,
            dp_replicate=settings.replicate,
        )
        self.micro_batches(shape)
        return shape

    def micro_batches(self, mesh: MeshShape) -> int:
        """Micro-batches of one optimizer step in each group of processes. MovaError for a mesh whose groups do not
        divide global_batch_size; it names the nearest settings that do.
        """
        return accumulation(
            mesh,
            self.global_batch_size,
            self.loader.batch,
            replicate=self.parallel.replicate,
            sharing=self.task == "joint",
        )

    def clips_per_step(self, mesh: MeshShape) -> int:
        """Clips of one optimizer step, over all processes."""
        return self.micro_batches(mesh) * self.loader.batch * mesh.data_parallel
