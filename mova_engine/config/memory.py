"""Where tensors live and what is computed again: the settings that training, sampling and the planner share."""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, get_args

from mova_engine.errors import MovaError, suggest

# What the backward pass computes again: nothing; every layer; every layer without video self-attention and without
# exchanges between processes; the same, but exchanging queries, keys and values again. In order of memory taken.
CHECKPOINTING = ("none", "selective", "out", "full")
# Training of all weights, of low-rank adapters, and sampling.
TASKS = ("full", "lora", "inference")

# The word by which a setting is left to the planner.
AUTO = "auto"
Place = Literal["auto", "device", "host"]
# Tokens of a chunk: many for a matrix unit, few beside a clip's.
CHUNK_ROWS = 8192
# Latent rows and columns of a tile of the video VAE, at most, and of what two tiles share; pixels of each.
VAE_TILE, VAE_OVERLAP, VAE_STRIDE = 32, 12, 8


@dataclass(frozen=True)
class MemoryConfig:
    """How memory is saved. Each setting but the default costs time; `mova plan` says how much.

    `auto` leaves a setting to the planner, which decides for the machine of the run (`memory.chosen_memory`).
    """

    checkpointing: Literal["auto", "none", "full", "selective", "out"] = "none"
    """What the backward pass computes again instead of keeping it: nothing; every layer; every layer without video
    self-attention and without exchanges between processes; the same, but exchanging its queries, keys and values again.
    """
    inputs: Place = "device"
    """Where checkpointed layers' inputs wait for the backward pass."""
    saved: Place = "device"
    """Where results that checkpointed layers keep, attention's output and log-sum-exp, wait for the backward pass."""
    frozen: Literal["activations", "fp8", "int8", "nf4"] = "activations"
    """How weights that are not trained are held, those of the linear layers of blocks and bridge: as they are read, or
    quantised when they are: in fp8 or int8 (half the memory of bf16), or in NF4 (28% of it). Layers whose sizes a
    format does not take (NF4: inputs in multiples of 64; fp8: both sizes in multiples of 16) stay as they are. A folder
    that `mova quantise` wrote needs no setting.
    """
    chunking: Literal["auto", "none", "rows"] = "none"
    """Whether what a block does with each token by itself is computed in chunks of 8192 tokens: the feed-forward, and
    the norm and rotation of queries and keys. What these hold on their way is then that of one chunk; in training the
    backward computes each chunk again.
    """
    weights: Literal["auto", "device", "host", "files"] = "device"
    """Where weights that are not trained are while not in use. Without parallel.shard, layers of towers and bridge come
    to the device one by one, while the one before computes, from the host's memory or from their files; adapters stay
    on the device. In sampling the text encoder's layers come from their files likewise. With parallel.shard, shards of
    weights and adapters with all that belongs to them are in the host's memory.
    """
    optimizer: Place = "device"
    """Where trained weights, their gradients and the optimizer's state are while not in use; with parallel.shard."""
    gathered: Literal["auto", "layer", "step"] = "layer"
    """With parallel.shard: how long weights that are gathered from the processes stay. While a layer is at work, so
    that the backward gathers it again; or until a training step's last backward, with all layers on the device.
    """
    gradients: Literal["auto", "micro-batch", "step"] = "micro-batch"
    """With parallel.shard: whether processes sum their gradients after each micro-batch, or once a step, which holds
    whole gradients in float32 on the device until then and rounds in another order.
    """
    prefetch: Literal["auto", "unit", "weights", "all"] = "unit"
    """With parallel.shard, in training: what travels between processes while a layer computes. The weights of the part
    that is next; those of the whole next layer, its bridge and both blocks; or these and the gradients of the layer
    before (torch 2.13). The same bits are sent, and sooner. Without shards weights has nothing to do.
    """
    expert: Place = "device"
    """Where the video expert waits that a denoising step does not use."""
    idle: Literal["auto", "host", "files", "device"] = "host"
    """Where text encoder, codecs and towers wait while sampling does not use them: in the host's memory, in their
    files, which are then read again, or on the device. Towers that parallel.shard divides stay on the device.
    """

    vae: Literal["auto", "whole", "tiles"] = "whole"
    """Whether sampling decodes and encodes whole pictures, or tiles of 256 pixels, which takes a fraction of the memory
    and about twice the time. Tiles overlap by as much as decoding sees: a seam is off by rounding.
    """

    def __post_init__(self) -> None:
        for name, known in _known().items():
            value = getattr(self, name)
            if value not in known:
                raise MovaError(
                    f"memory.{name}: unknown value '{value}'.{suggest(str(value), known)} Known: {', '.join(known)}"
                )

    @property
    def undecided(self) -> tuple[str, ...]:
        """Names of the settings that are left to the planner."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) == AUTO)

    @property
    def decided(self) -> dict[str, str]:
        """The other settings."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != AUTO}

    @property
    def mode(self) -> str:
        """The word of `MODES` for where weights are."""
        if self.weights in (AUTO, "device"):
            return AUTO if self.weights == AUTO else "expert" if self.expert == "host" else "resident"
        return {"host": "stream", "files": "disk"}[self.weights]

    @property
    def chunk_rows(self) -> int | None:
        """Tokens of a chunk; None: all at once."""
        return CHUNK_ROWS if self.chunking == "rows" else None

    @property
    def weights_on_host(self) -> bool:
        """Whether weights themselves lie in the host's memory."""
        return "host" in (self.weights, self.optimizer)

    def unavailable(self, task: str, sharded: bool) -> dict[str, str]:
        """Settings that no run of `task` can obey, each with the reason. Empty: it can be run.

        sharded: whether weights are divided among several processes. This is what trainer and sampler refuse, and what
        the planner does not recommend.
        """
        lora, sampling = task == "lora", task == "inference"
        streams = self.weights != "device" and not sharded
        rules = (
            ("checkpointing", self.checkpointing != "none" and sampling, "sampling has no backward pass"),
            ("inputs", self.inputs == "host" and sampling, "sampling has no backward pass"),
            (
                "inputs",
                self.inputs == "host" and self.checkpointing == "none",
                "only checkpointed layers' inputs wait: choose memory.checkpointing full, selective or out",
            ),
            ("saved", self.saved == "host" and sampling, "sampling has no backward pass"),
            (
                "saved",
                self.saved == "host" and self.checkpointing in ("none", "full"),
                "no results are kept apart: choose memory.checkpointing selective or out",
            ),
            (
                "frozen",
                self.frozen != "activations" and task == "full",
                "all weights are trained: quantised ones go with adapters (lora.rank) and sampling",
            ),
            (
                "frozen",
                self.frozen != "activations" and sharded,
                f"weights in {self.frozen} are held whole in each process: leave parallel.shard out",
            ),
            (
                "weights",
                self.weights != "device" and task == "full",
                "all weights are trained, and go to the host with the optimizer's state: memory.optimizer host",
            ),
            (
                "weights",
                streams and lora and self.checkpointing == "none",
                "layers that come one by one keep nothing for the backward: choose memory.checkpointing full, "
                "selective or out",
            ),
            (
                "frozen",
                streams and self.frozen != "activations",
                "layers that come one by one come as their files have them: write them so first (mova quantise)",
            ),
            (
                "weights",
                self.weights == "files" and sharded,
                "shares of weights wait on the device or the host: leave parallel.shard out",
            ),
            (
                "optimizer",
                self.optimizer == "host" and task != "full",
                "nothing but adapters is trained, which go with the frozen weights: memory.weights host"
                if lora
                else "sampling has no optimizer",
            ),
            (
                "optimizer",
                self.optimizer == "host" and not sharded,
                "its state comes from the host in shards only: it needs parallel.shard and several processes",
            ),
            ("gathered", self.gathered == "step" and sampling, "sampling gathers a layer when it is at work"),
            (
                "gathered",
                self.gathered == "step" and not sharded,
                "nothing is gathered: it needs parallel.shard and several processes",
            ),
            (
                "gathered",
                self.gathered == "step" and self.weights_on_host,
                "all layers would lie on the device after all: leave memory.weights and memory.optimizer at device",
            ),
            ("gradients", self.gradients == "step" and sampling, "sampling has no gradients"),
            (
                "gradients",
                self.gradients == "step" and not sharded,
                "whole gradients are summed once a step in any case: it is for parallel.shard and several processes",
            ),
            ("prefetch", self.prefetch != "unit" and sampling, "sampling gathers the next part of a layer alone"),
            (
                # Recipes ask for weights, and run in one process too, which has nothing to gather.
                "prefetch",
                self.prefetch == "all" and not sharded,
                "no process waits for another's: it needs parallel.shard and several processes; else leave it at unit",
            ),
            (
                "expert",
                self.expert == "host" and not sampling,
                "training draws an expert at each step: both stay; memory.weights or memory.optimizer concerns them",
            ),
            (
                "expert",
                self.expert == "host" and self.weights != "device",
                "layers of both experts come and go: memory.weights concerns them",
            ),
            (
                "expert",
                self.expert == "host" and sharded,
                "shards of both experts are held alike: memory.weights host concerns them",
            ),
            (
                "idle",
                self.idle != "host" and not sampling,
                "training leaves text encoder and codecs when it has encoded; loader.encode online keeps them",
            ),
        )
        rules += (
            ("vae", self.vae == "tiles" and not sampling, "training encodes whole pictures; tiles are for sampling"),
            ("vae", self.vae == "tiles" and sharded, "processes that make a clip together decode some rows each"),
        )
        found: dict[str, str] = {}
        for name, broken, reason in rules:
            if broken:
                found.setdefault(name, reason)
        return found

    def check(self, task: str, sharded: bool) -> None:
        """MovaError that names the first setting which a run of `task` cannot obey (`unavailable`); what depends on a
        setting that is left to the planner is for the planner to judge.
        """
        if self.undecided:
            if task == "full":
                raise MovaError(
                    f"memory.{self.undecided[0]} auto is for adapters (lora.rank) and sampling: ask mova plan what "
                    "training of all weights needs, and give its options"
                )
            return
        for name, reason in self.unavailable(task, sharded).items():
            raise MovaError(f"memory.{name} {getattr(self, name)}: {reason}")

    def check_decided(self) -> None:
        """MovaError if a setting is left to the planner, for what runs without it: a dry run, a pipeline's parts."""
        for name in self.undecided:
            raise MovaError(
                f"memory.{name} auto is chosen where a run starts: here give settings, such as --memory stream; "
                "mova plan --vram 24GB --ram 64GB says which"
            )

    def changes(self, base: "MemoryConfig") -> dict[str, str]:
        """Settings in which this differs from `base`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(base, f.name)}


@cache
def _known() -> dict[str, tuple[str, ...]]:
    """The values of each setting. The planner makes thousands of configurations."""
    return {field.name: get_args(field.type) for field in fields(MemoryConfig)}


# Settings by the word that stands for them (`--memory stream`, `memory: stream`): where the weights are while a step
# does not use them. Nothing here changes what is computed; `frozen`, which does, is never left to the planner.
_TOWERS = {
    "resident": {"weights": "device", "expert": "device"},
    "expert": {"weights": "device", "expert": "host"},
    "stream": {"weights": "host", "expert": "device"},
    "disk": {"weights": "files", "expert": "device"},
}
_OPEN = dict.fromkeys((f.name for f in fields(MemoryConfig) if f.name != "frozen"), AUTO)
MODES: dict[str, dict[str, dict[str, str]]] = {
    "lora": {AUTO: _OPEN, **_TOWERS},
    "inference": {AUTO: _OPEN, **_TOWERS, "disk": {**_TOWERS["disk"], "idle": "files"}},
}


def memory_of_word(word: str, task: str = "inference") -> MemoryConfig:
    """The settings that a word of `MODES` stands for, over the defaults. MovaError, with the nearest, for another."""
    known = MODES[task]
    if word not in known:
        raise MovaError(f"memory: unknown value '{word}'.{suggest(word, known)} Known: {', '.join(known)}")
    given: dict[str, Any] = dict(known[word])
    return MemoryConfig(**given)


@dataclass(frozen=True)
class MemoryMode:
    """The option that gives several settings of memory by one word."""

    memory: Literal["auto", "resident", "expert", "stream", "disk"] | None = None
    """Where weights are: resident on the device; the expert that a step does not use on the host (sampling); layers
    streamed from the host's memory, or from disk; or auto: what fits --vram and --ram, chosen by the planner at the
    start. A single setting wins over it.
    """


# What a run is compared with, by task: the plain settings, under which nothing is offloaded.
PLAIN = {
    "full": MemoryConfig(checkpointing="selective"),
    "lora": MemoryConfig(checkpointing="selective"),
    "inference": MemoryConfig(),
}
