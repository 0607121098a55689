"""What a sampling run is made of, as typed and validated settings: the command line fills them in."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.adapter_spec import parse_adapter
from mova_engine.config.byte_sizes import check_bytes
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import Command, section
from mova_engine.config.diffusion import check_sigmas
from mova_engine.config.enhance import BACKENDS, EnhanceConfig, EnhanceMode
from mova_engine.config.limits import check, check_least, check_threads
from mova_engine.config.memory import MODES, MemoryConfig, MemoryMode
from mova_engine.config.parallel import ParallelConfig
from mova_engine.config.remaking import SampleOptions, settings_in
from mova_engine.config.shorthand import Shorthand
from mova_engine.config.signing import ProvenanceSettings
from mova_engine.errors import MovaError

# The word for the reference's own negative prompt.
REFERENCE = "default"
# Where a model's calibration is, beside it.
CACHE_FILE = "step_cache.json"
# Relative change of the first layer below which the adaptive cache leaves out the others: that of diffusers.
CACHE_THRESHOLD = 0.05
# Longer clips, which are held in memory, are most likely a typing error.
MOST_SECONDS = 3600.0
# Settings that have an effect only where there is guidance, and those that only `dual` takes.
_GUIDED = ("text_scale", "audio_text_scale", "guide_from", "guide_until", "guidance_rescale", "negative_prompt")
_DUAL = ("bridge_scale", "audio_bridge_scale")
_STEPS, _GUIDANCE, _GIVEN = section("Steps"), section("Guidance"), section("Given pictures or sound")

ABOUT = """Generate clips with sound from a caption and a first frame, as mp4 files; or sound for a video, pictures for
a sound, a part of a clip anew.

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
    keyframe: tuple[str, ...] = ()
    """Pictures in between, as FILE:SECONDS; models were trained with first frames alone."""
    video: Annotated[Path | None, _GIVEN] = None
    """A video to make sound for. Its pictures stay as they are; it lasts as long as the clip."""
    audio: Annotated[Path | None, _GIVEN] = None
    """Sound to make pictures for: a file of sound, or a video's. It stays as it is."""
    retake: Annotated[Path | None, _GIVEN] = None
    """A clip of which a window is made anew, the rest kept."""
    window: Annotated[tuple[float, float] | None, _GIVEN] = None
    """That window: where it begins and ends, in seconds."""
    retake_of: Annotated[Literal["both", "video", "audio"], _GIVEN] = "both"
    """What is made anew in the window."""
    extend: Annotated[Path | None, _GIVEN] = None
    """A clip to go on from; with --seconds, how long it becomes."""
    seconds: Annotated[float | None, _GIVEN] = None
    """Length of the clips where it is more than the model makes at once: windows, each of which continues the last."""
    overlap: Annotated[int | None, _GIVEN] = None
    """Frames that two windows share, 4n+1; default: about a quarter of a window."""
    given: Annotated[Literal["video", "audio"] | None, _GIVEN] = None
    """With prompts from a folder of clips: what is given of each; the other is made for it."""
    start: Annotated[float, _GIVEN] = 0.0
    """Where in the file of --image, --video or --audio it begins, in seconds."""
    video_passes: Annotated[str, _GIVEN] = "exact"
    """With a given video, how often the video tower runs: exact, in each step; a number N, in one of N steps; once, at
    the cost of sound that it does not adapt to."""
    audio_alone: Annotated[bool, _GIVEN] = False
    """Make sound alone, by the audio tower, as wav files."""
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
    fast: Annotated[bool, _STEPS] = False
    """What was measured to make as good clips in less time: 16 steps of unipc. It says what it turned on."""
    solver: Annotated[Literal["euler", "heun", "unipc"] | None, _STEPS] = None
    """How steps are taken: euler, first order, as MOVA was published; unipc, second order at the same cost; heun,
    second order with two evaluations a step. Default: euler."""
    video_shift: Annotated[float | None, _STEPS] = None
    """Sigma shift of the video; default: the training's."""
    audio_shift: Annotated[float | None, _STEPS] = None
    """Sigma shift of the sound; default: the training's."""
    sigmas: Annotated[tuple[float, ...], _STEPS] = ()
    """Noise levels of the steps, falling from 1, for models distilled to a few steps: 1 0.9375 0.8333 0.625."""
    audio_sigmas: Annotated[tuple[float, ...], _STEPS] = ()
    """Those of the sound; default: sigmas. N times as many: the sound takes N steps in each of the video."""
    switch: Annotated[int | None, _STEPS] = None
    """With sigmas: how many steps the high-noise expert serves; default: those above the boundary."""
    cache: Annotated[str, _STEPS] = "none"
    """How many times less often the video tower runs, such as 1.6: in the other steps the video goes on as before,
    while the sound is computed in each. Which steps, says the calibration, by the least error. Or adaptive,
    adaptive:0.05: where its first layer changes by less than so much, its other layers are left out."""
    cache_file: Annotated[Path | None, _STEPS] = None
    """What mova calibrate wrote; default: step_cache.json in the folder of --checkpoint."""
    attention: Annotated[str, _STEPS] = "exact"
    """How the video tower's self-attention is computed after the first steps: exact, or in 8 bits or sparse, by an
    implementation of lossy_attention that mova ops lists. It is checked in the first step."""
    exact_steps: Annotated[int | None, _STEPS] = None
    """With another attention than exact: the first steps in which it is; default: 15 % of them."""
    guidance: Annotated[Literal["none", "text", "text_bridge", "dual"] | None, _GUIDANCE] = None
    """What steers the sampling; default: the model's, mostly text."""
    text_scale: Annotated[float | None, _GUIDANCE] = None
    """Strength of guidance by text; default: 5."""
    bridge_scale: Annotated[float | None, _GUIDANCE] = None
    """Strength of guidance by the bridge, for dual; default: 1."""
    audio_text_scale: Annotated[float | None, _GUIDANCE] = None
    """Strength of guidance by text for the sound; default: text-scale."""
    audio_bridge_scale: Annotated[float | None, _GUIDANCE] = None
    """Strength of guidance by the bridge for the sound; default: bridge-scale."""
    guide_from: Annotated[float | None, _GUIDANCE] = None
    """Share of the steps before which there is no guidance; default: 0."""
    guide_until: Annotated[float | None, _GUIDANCE] = None
    """Share of the steps after which there is none, which saves its evaluations; default: 1."""
    guidance_rescale: Annotated[float | None, _GUIDANCE] = None
    """Share of a result with the standard deviation of the unguided one, against overexposure; default: 0."""
    negative_prompt: Annotated[str | None, _GUIDANCE] = None
    """What guidance steers away from; "default": what MOVA's own scripts take. Default: the empty prompt."""
    sequential_guidance: Annotated[bool, _GUIDANCE] = False
    """One evaluation at a time, to save memory."""
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
    enhance: Annotated[EnhanceConfig, section("Prompts")] = field(default_factory=EnhanceConfig)
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)
    parallel: Annotated[ParallelConfig, section("Several processes")] = field(default_factory=ParallelConfig)
    memory: Annotated[MemoryConfig, section("Memory")] = field(default_factory=MemoryConfig)
    vram: Annotated[str | None, section("Memory")] = None
    """The most of the device's memory to use, such as 12GB or 12GiB; default: what is free."""
    ram: Annotated[str | None, section("Memory")] = None
    """The most of the host's memory to use, over all processes of a machine; default: what is free."""
    no_provenance: Annotated[bool, section("Provenance")] = False
    """Do not sign the clips. Their manifests are written all the same."""
    provenance: Annotated[ProvenanceSettings, section("Provenance")] = field(default_factory=ProvenanceSettings)

    def __post_init__(self) -> None:
        check(
            (self.prompt is None) != (self.prompts is None),
            "what to sample: give --prompt, a text, or --prompts, a folder of clips or a text file; one of the two",
        )
        self._check_given()
        self.provenance.check_with(self.no_provenance)
        check_least(self, "", batch=1, steps=1, exact_steps=1)
        check(self.exact_steps is None or self.attention != "exact", "--exact-steps goes with --attention")
        check(self.attention == "exact" or not self.audio_alone, "--audio-alone has no video: leave --attention out")
        check_threads(self.threads)
        check(bool(self.lora) or self.lora_alpha is None, "--lora-alpha has no effect without --lora")
        for each in self.lora:
            parse_adapter(each)
        check_bytes(vram=self.vram, ram=self.ram)
        if self.sigmas:
            check_sigmas(self.sigmas, self.audio_sigmas or None, self.switch)
            for name in ("steps", "video_shift", "audio_shift"):
                wanted = f"--sigmas states the noise levels of all steps: leave --{name.replace('_', '-')} out"
                check(getattr(self, name) is None, wanted)
        check(bool(self.sigmas) or not self.audio_sigmas, "--audio-sigmas goes with --sigmas")
        check(bool(self.sigmas) or self.switch is None, "--switch goes with --sigmas")
        check(
            len(self.audio_sigmas) <= len(self.sigmas) or not self.makes_no_video,
            "several --audio-sigmas for each of the video's are for videos that are made; with a given one, "
            "--video-passes says how often it is passed",
        )
        self._check_fast()
        self._check_cache()
        self.memory.check("inference", self.parallel.shard)

    def _check_cache(self) -> None:
        speedup, adaptive = self.cache_speedup, self.cache_threshold is not None
        check(self.cache_file is None or speedup > 1, "--cache-file goes with --cache, a speed-up above 1")
        if speedup == 1 and not adaptive:
            return
        check(
            self.solver != "heun",
            "--cache: solver heun corrects each step by a second evaluation, which would find nothing new of the "
            "video: take euler or unipc",
        )
        check(
            not self.makes_no_video,
            "--cache is for videos that are made; with a given one, --video-passes says how often it runs",
        )
        check(not self.audio_alone, "--audio-alone runs no video tower: leave --cache out")
        check(not adaptive or self.batch in (None, 1), "--cache adaptive decides clip by clip: leave --batch out, or 1")

    @property
    def makes_no_video(self) -> bool:
        """Whether all pictures are given."""
        return self.video is not None or self.given == "video" or self.retake_of == "audio"

    @property
    def cache_threshold(self) -> float | None:
        """That of the adaptive cache; None: none."""
        word, colon, number = self.cache.partition(":")
        if word != "adaptive":
            return None
        threshold = _number(number) if colon else CACHE_THRESHOLD
        if threshold is None or not 0 <= threshold < math.inf:
            raise MovaError(f"--cache adaptive:THRESHOLD takes a number from 0 on, got '{number}'")
        return threshold

    @property
    def cache_speedup(self) -> float:
        """That of the planned cache; 1: none."""
        if self.cache == "none" or self.cache_threshold is not None:
            return 1.0
        speedup = _number(self.cache)
        if speedup is None or not 1 <= speedup < math.inf:
            raise MovaError(f"cache is a speed-up of at least 1, adaptive or none, got '{self.cache}'")
        return speedup

    def _check_fast(self) -> None:
        if not self.fast:
            return
        for name in ("steps", "sigmas", "audio_sigmas", "switch"):
            given = getattr(self, name) not in (None, ())
            check(not given, f"--fast says how many steps there are: leave --{name.replace('_', '-')} out")
        check(self.solver in (None, "unipc"), f"--fast takes unipc: leave --solver {self.solver} out")
        check(self.cache == "none", "--fast has no step cache, since fewer steps are nearer: leave --cache out")
        check(not self.audio_alone, "--fast was measured with pictures: with --audio-alone, leave it out")

    def _check_given(self) -> None:
        named = [name for name in ("video", "audio", "retake", "extend", "given") if getattr(self, name) is not None]
        check(len(named) < 2, f"--{named[0]} and --{named[-1]} exclude one another" if named else "")
        check((self.retake is None) == (self.window is None), "--retake CLIP and --window BEGIN END go together")
        check(self.retake_of == "both" or self.retake is not None, "--retake-of goes with --retake")
        check(self.given is None or self.prompts is not None, "--given goes with --prompts, a folder of clips")
        check(
            not named or named == ["given"] or self.prompts is None,
            f"--{named[0] if named else ''} goes with --prompt; with --prompts FOLDER: --given video or audio",
        )
        check(self.extend is None or self.seconds is not None, "--extend CLIP goes with --seconds, its length then")
        check(self.overlap is None or self.seconds is not None, "--overlap goes with --seconds")
        check(self.seconds is None or named in ([], ["extend"]), "--seconds goes with --prompt or --extend alone")
        check(
            self.seconds is None or 0 < self.seconds <= MOST_SECONDS,
            f"seconds must lie between 0 and {MOST_SECONDS:g}, got {self.seconds}",
        )
        # A part of a clip from its beginning may get another first frame.
        kept = self.retake is not None and self.window is not None and self.window[0] > 0
        check(
            self.image is None or not (self.video or kept or self.extend or self.given == "video"),
            "the given pictures have the first frame: leave --image out",
        )
        other = self.last_image is not None or bool(self.keyframe)
        check(not other or named in ([], ["audio"]), "--last-image and --keyframe go with no other given pictures")
        check(not other or self.seconds is None, "--last-image and --keyframe do not go with --seconds")
        starts = any(each is not None for each in (self.image, self.video, self.audio))
        check(self.start == 0 or starts, "--start goes with --image, --video or --audio")
        check(0 <= self.start < math.inf, f"start must be a number of seconds from 0 on, got {self.start}")
        pictures = self.image is not None or other or self.seconds is not None
        check(
            not self.audio_alone or (not named and not pictures),
            "--audio-alone makes sound from text: leave pictures, given sound and --seconds out",
        )
        for name in ("video_shift", "switch"):
            useless = f"--{name.replace('_', '-')} has no effect with --audio-alone"
            check(not self.audio_alone or getattr(self, name) is None, useless)
        every = self.video_every
        sees = self.video is not None or self.given == "video"
        check(every == 1 or sees, "--video-passes goes with --video, or --given video")

    @property
    def video_every(self) -> int:
        """`LoopOptions.video_every`: the video tower runs in one of so many evaluations; 0: once."""
        words = {"exact": 1, "once": 0}
        if self.video_passes in words:
            return words[self.video_passes]
        if re.fullmatch("[1-9][0-9]{0,8}", self.video_passes) is None:
            raise MovaError(f"video_passes must be exact, once or a number from 1 on, got '{self.video_passes}'")
        return int(self.video_passes)

    def check_guidance(self, form: str) -> None:
        """MovaError for a setting that has no effect with this form of guidance, the model's or the chosen one."""
        useless = (*(() if form == "dual" else _DUAL), *(_GUIDED if form == "none" else ()))
        for name in useless:
            # An empty negative prompt is what there is without one.
            given = getattr(self, name) not in (None, "")
            check(not given, f"--{name.replace('_', '-')} has no effect with guidance '{form}'")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# What `MemoryConfig.unavailable` says of sampling.
REFUSED_MEMORY = tuple(f"--memory.{name}" for name in ("checkpointing", "inputs", "saved", "frozen", "optimizer"))
SAMPLE = Command(
    "mova sample",
    SampleConfig,
    ABOUT,
    hidden=REFUSED_MEMORY,
    beside=SampleOptions,
    translators={"--manifest": settings_in},
    shorthands=(
        Shorthand("memory", MODES["inference"], MemoryMode, section("Memory")),
        Shorthand("enhance", BACKENDS, EnhanceMode, section("Prompts")),
    ),
)
