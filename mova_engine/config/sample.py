"""What a sampling run is made of, as typed and validated settings: the command line fills them in."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.adapter_spec import parse_adapter
from mova_engine.config.byte_sizes import check_bytes
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import Command, section
from mova_engine.config.limits import check, check_least, check_threads
from mova_engine.config.memory import MODES, MemoryConfig, MemoryMode
from mova_engine.config.parallel import ParallelConfig
from mova_engine.config.rehearsal import RehearsalOptions
from mova_engine.config.shorthand import Shorthand

# The word for the reference's own negative prompt.
REFERENCE = "default"
# Which strengths a form of guidance takes.
_SCALES = {"none": (), "text": ("text",), "text_bridge": ("text",), "dual": ("text", "bridge")}

ABOUT = """Generate clips with sound from a caption and a first frame, as mp4 files.

A folder of samples holds the clips, metadata.jsonl with the settings of each, and a contact sheet to look at.
"""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """A sampling run."""

    checkpoint: Path
    """Model folder, training run (its newest checkpoint) or Hugging Face cache folder."""
    prompt: str | None = None
    """What to show and sound. Or prompts."""
    prompts: Path | None = None
    """Folder of clips (caption and first frame of each), or .txt with one prompt a line."""
    image: Path | None = None
    """First frame: a picture, or a video's first one; default: white."""
    last_image: Path | None = None
    """Last frame, likewise; default: free."""
    out: Path = Path("samples")
    """Where to write."""
    overwrite: bool = False
    """Replace samples that are there already."""
    count: int | None = None
    """Clips to make, prompts taken in turn; default: one of each."""
    seed: int = 0
    """Clip i has seed + i."""
    steps: int | None = None
    """Denoising steps; default: the model's, mostly 50."""
    guidance: Literal["none", "text", "text_bridge", "dual"] | None = None
    """What steers the sampling; default: the model's, mostly text."""
    text_scale: float | None = None
    """Strength of guidance by text; default: 5."""
    bridge_scale: float | None = None
    """Strength of guidance by the bridge, for dual; default: 1."""
    negative_prompt: str | None = None
    """What guidance steers away from; "default": what MOVA's own scripts take. Default: the empty prompt."""
    sequential_guidance: bool = False
    """One evaluation at a time, to save memory."""
    video_shift: float | None = None
    """Sigma shift of the video; default: the training's."""
    audio_shift: float | None = None
    """Sigma shift of the sound; default: the training's."""
    batch: int | None = None
    """Clips at a time; default: up to 16 small ones, one large."""
    device: str | None = None
    """cpu, cuda or npu; default: the first of npu, cuda, cpu that works."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the towers compute in; default: as stored."""
    threads: int | None = None
    """CPU threads; default: one for models too narrow to share their work, else PyTorch's choice."""
    lora: tuple[str, ...] = ()
    """Adapters to add: a LoRA run, or a file or folder of any dialect, as FILE, FILE:PART, FILE:STRENGTH or
    FILE:PART:STRENGTH. PART is high, low, both, audio or bridge, where the file does not say it."""
    lora_alpha: float | None = None
    """Their alpha instead of the file's own."""
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)
    parallel: Annotated[ParallelConfig, section("Several processes")] = field(default_factory=ParallelConfig)
    memory: Annotated[MemoryConfig, section("Memory")] = field(default_factory=MemoryConfig)
    vram: Annotated[str | None, section("Memory")] = None
    """The most of the device's memory to use, such as 12GB or 12GiB; default: what is free."""
    ram: Annotated[str | None, section("Memory")] = None
    """The most of the host's memory to use, over all processes of a machine; default: what is free."""

    def __post_init__(self) -> None:
        check(
            (self.prompt is None) != (self.prompts is None),
            "what to sample: give --prompt, a text, or --prompts, a folder of clips or a text file; one of the two",
        )
        check_least(self, "", batch=1, steps=1)
        check_threads(self.threads)
        check(bool(self.lora) or self.lora_alpha is None, "--lora-alpha has no effect without --lora")
        for each in self.lora:
            parse_adapter(each)
        check_bytes(vram=self.vram, ram=self.ram)
        self.memory.check("inference", self.parallel.shard)

    def check_guidance(self, form: str) -> None:
        """MovaError for a setting that has no effect with this form of guidance, the model's or the chosen one."""
        for name in ("text", "bridge"):
            check(
                getattr(self, f"{name}_scale") is None or name in _SCALES[form],
                f"--{name}-scale has no effect with guidance '{form}'",
            )
        check(not self.negative_prompt or form != "none", "--negative-prompt has no effect with guidance 'none'")


# What `MemoryConfig.unavailable` says of sampling.
_REFUSED = tuple(f"--memory.{name}" for name in ("checkpointing", "inputs", "frozen", "optimizer"))
SAMPLE = Command(
    "mova sample",
    SampleConfig,
    ABOUT,
    hidden=_REFUSED,
    beside=RehearsalOptions,
    shorthand=Shorthand("memory", MODES["inference"], MemoryMode, section("Memory")),
)
