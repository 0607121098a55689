"""From words and a first frame to a clip: encode the conditions, denoise, decode."""

# torch does not say of all its functions what they take; what a user passes is looked at whatever he was told.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnnecessaryIsInstance=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from mova_engine.backend import Backend, default_backend, get_backend
from mova_engine.checkpoints.folder import Codecs, mova_config_from_folder
from mova_engine.checkpoints.locate import open_model
from mova_engine.config.adapter_spec import AdapterSpec, parse_adapter
from mova_engine.config.clip import ClipSettings
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import COMPONENTS, ClipConfig, MovaConfig
from mova_engine.config.stages import CODEC_PARTS, EXPERTS, LOAD_TOWERS
from mova_engine.data.media.decode import Clip
from mova_engine.data.text import flaw
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.clip_codecs import ClipCodecs, Encoded
from mova_engine.inference.denoising import Conditions, Latents, LoopOptions, Step, denoise, draw_noise
from mova_engine.inference.generated_clip import GeneratedClip
from mova_engine.inference.loading import open_parts, trained
from mova_engine.inference.requests import Request, read_frame
from mova_engine.memory.residency import Residency
from mova_engine.memory.streaming import StreamedModel
from mova_engine.models.mova import Mova

# What MOVA's own inference scripts steer away from unless told otherwise. The words are the Wan project's (Wan 2.1,
# Apache-2.0): garish, overexposed, static, blurred, subtitles, low quality, JPEG artefacts, deformed hands and faces.
REFERENCE_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
# Clips that keep a device busy at small sizes; at the released ones, one.
BATCH_TOKENS, MOST_CLIPS = 4096, 16
# Clips whose words and pictures are encoded before the first of them is made; at 360p 18 MB of host memory each.
ENCODED_AHEAD = 256
# The stage, as told to `on_stage`, that takes as long as the disk does.
LOADING = "loading towers"
NO_CODECS = Codecs(None, None, None)
# A file, or pixels uint8 [h, w, 3].
Picture = str | Path | np.ndarray | None


@dataclass(frozen=True)
class SampleSettings:
    """Euler steps, guidance, and the words that guidance steers away from."""

    steps: int = 50
    guidance: Guidance = field(default_factory=Guidance)
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise MovaError(f"steps must be at least 1, got {self.steps}")
        if self.negative_prompt and self.guidance.form == "none":
            raise MovaError("a negative prompt has no effect with guidance 'none'")
        if reason := flaw(self.negative_prompt):
            raise MovaError(f"the negative prompt {reason}")


def default_settings(config: MovaConfig) -> SampleSettings:
    """What a model is sampled with unless told otherwise, as its folder states (`train.model_setup.model_config`)."""
    return SampleSettings(config.sampling.steps, Guidance(config.sampling.guidance))


def default_batch(clip: ClipConfig, count: int) -> int:
    """Clips at a time of `count` in all: as many small ones as keep a device busy, one of the released sizes."""
    return max(1, min(MOST_CLIPS, BATCH_TOKENS // clip.video_tokens, count))


def batched(requests: Sequence[Request], size: int) -> list[Sequence[Request]]:
    """Requests in batches of `size`, the last of which may have fewer."""
    return [requests[start : start + size] for start in range(0, len(requests), size)]


@dataclass
class Pipeline:
    """A model with its codecs and text encoder. The clips' shape is `clip`, or `mova.config.clip` where that is None.

    schedule, prediction, options.clean_first_frame and options.bridge must be those of the training. processes: each of
    them has a pipeline, with the codecs that `loading.own_codecs` names. sharded: they hold parts of the weights each.
    device: where the towers compute; None: where they are. residency: brings its parts to the device for their stages,
    and has read no file of theirs before; None: all are where they compute. streamed: brings the layers' weights, where
    they come and go.
    """

    mova: Mova
    codecs: Codecs = NO_CODECS
    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = field(default_factory=Prediction)
    options: LoopOptions = field(default_factory=LoopOptions)
    clip: ClipConfig | None = None
    processes: Processes = field(default_factory=Processes)
    sharded: bool = False
    device: torch.device | None = None
    residency: Residency | None = None
    streamed: StreamedModel | None = None

    def __post_init__(self) -> None:
        given = type(self.mova).__name__
        if not isinstance(self.mova, Mova):
            raise MovaError(
                f"Pipeline takes a Mova, got {given}: Pipeline.from_pretrained(FOLDER) loads a model folder"
            )
        if not isinstance(self.codecs, Codecs) or self.codecs == NO_CODECS:
            raise MovaError("Pipeline takes the model's Codecs too: Pipeline.from_pretrained(FOLDER) loads all of it")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        *,
        clip: ClipSettings | None = None,
        memory: MemoryConfig | None = None,
        lora: str | Path | Sequence[str | Path] | None = None,
    ) -> "Pipeline":
        """The pipeline of a model folder, a training run (its newest checkpoint) or a Hugging Face cache folder.

        device: "cpu", "cuda" or "npu"; None: the first of npu, cuda, cpu that works. dtype: what the towers compute in,
        `torch.bfloat16`; None: as stored. clip: sizes other than the model's own, `ClipSettings(height=352,
        width=640)`.
        lora: adapters to add, one or several: a LoRA run, its checkpoint, or a file or folder of any dialect; as text
        also with what it adapts and a strength, "style.safetensors:high:0.8".
        memory: where weights wait while they are not used, `mova_engine.MemoryConfig(idle=...)`: "host",
        the default: in the host's memory, so that the device holds the largest stage and not the sum; "files": nowhere,
        they are read again; "device": they stay. `expert="host"`: one video expert at a time. `weights="host"` or
        "files": layers come to the device one by one, so that it holds two of them and not the model.
        Weights are read when the first call needs them; text encoder, video experts and codecs are not on the device
        together. Later calls read no file again, but for idle="files".
        Raises MovaError for whatever is missing or damaged, and for arguments of another kind.

            from mova_engine import Pipeline

            pipeline = Pipeline.from_pretrained("runs/nano")
            clip = pipeline("a red ball bounces", image="first.png", seed=0)
            clip.save("ball.mp4")
        """
        for name, value, kinds in (
            ("folder", folder, (str, Path)),
            ("device", device, (str, type(None))),
            ("dtype", dtype, (torch.dtype, type(None))),
            ("clip", clip, (ClipSettings, type(None))),
            ("memory", memory, (MemoryConfig, type(None))),
            ("lora", lora, (str, Path, list, tuple, type(None))),
        ):
            if not isinstance(value, kinds):
                wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise MovaError(f"Pipeline.from_pretrained: {name} must be {wanted}, got {value!r}")
        backend = get_backend(device) if device else default_backend()
        found, config = open_model(folder, clip or ClipSettings())
        given = [] if lora is None else [lora] if isinstance(lora, str | Path) else lora
        chosen = [parse_adapter(str(each)) for each in given]
        return load_pipeline(found, backend, dtype=dtype, clip=config.clip, memory=memory, lora=chosen, config=config)

    @overload
    def __call__(
        self,
        prompt: str,
        image: Picture = None,
        seed: int = 0,
        *,
        last_image: Picture = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
    ) -> GeneratedClip: ...

    @overload
    def __call__(
        self,
        prompt: list[str] | tuple[str, ...],
        image: Picture = None,
        seed: int = 0,
        *,
        last_image: Picture = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
    ) -> list[GeneratedClip]: ...

    def __call__(
        self,
        prompt: str | list[str] | tuple[str, ...],
        image: Picture = None,
        seed: int = 0,
        *,
        last_image: Picture = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
    ) -> GeneratedClip | list[GeneratedClip]:
        """Make a clip of a prompt, or a list of clips of several, of which clip i has the seed `seed + i`.

        image, last_image: first and last frame of all of them, a file (a picture, or a video's first one) or uint8
        [h, w, 3]; cropped and resized. steps, guidance: the model's own where None. batch: clips at a time.
        In one process; raises MovaError as `generate` does.
        """
        settings = default_settings(self.mova.config)
        given = {"steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
        settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        frames = [self._frame(picture) for picture in (image, last_image)]
        requests = [Request(caption, seed + i, *frames) for i, caption in enumerate(prompts)]
        batch = batch or default_batch(self.shape, len(requests))
        clips = [
            self._handed_out(request, clip)
            for request, clip in zip(requests, self.generate(requests, settings, batch=batch), strict=True)
        ]
        return clips[0] if isinstance(prompt, str) else clips

    def _handed_out(self, request: Request, clip: Clip | None) -> GeneratedClip:
        if clip is None:
            raise MovaError("of several processes the first has the clips: call `generate` there")
        fps, rate = self.shape.fps, self.shape.sample_rate
        return GeneratedClip(clip.pictures, clip.audio[None], fps, rate, request.caption, request.seed)

    def _frame(self, picture: Picture) -> np.ndarray | None:
        return read_frame(picture, self.shape) if isinstance(picture, str | Path) else picture

    def read_weights(self) -> None:
        """Read all weights from their files now, into the host's memory, which the first call would do as it goes; not
        those that `MemoryConfig(idle="files")` leaves there. For a server that is to be ready, or for `mova` itself.
        """
        if self.residency is not None:
            self.residency.read_ahead(*CODEC_PARTS, *COMPONENTS)

    @property
    def shape(self) -> ClipConfig:
        """The shape of the clips made."""
        return self.clip or self.mova.config.clip

    def generate(
        self,
        requests: Sequence[Request],
        settings: SampleSettings,
        *,
        batch: int = 1,
        encoded: Sequence[Encoded] | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_stage: Callable[[str], object] = lambda _: None,
    ) -> Iterator[Clip | None]:
        """Yield a clip per request, in order, as each batch of `batch` is done: pictures and sound of equal duration.

        A clip does not depend on its neighbours in the batch. on_step is called after each denoising step, on_stage
        with a description of the next stage. Of several processes, which all are given the same requests, the first
        gets the clips; the others yield None for each. Their data-parallel groups take a batch each at a time. encoded:
        what `ClipCodecs.encode` has made of each batch, in one process; None: it is made now. Raises MovaError when
        latents come out not finite.
        """
        if batch < 1:
            raise MovaError(f"batch must be at least 1, got {batch}")
        batches = batched(requests, batch)
        groups = self.processes.shape.data_parallel
        turns = [batches[start : start + groups] for start in range(0, len(batches), groups)]
        ahead = max(1, ENCODED_AHEAD // batch)
        for start in range(0, len(turns), ahead):
            some = turns[start : start + ahead]
            if encoded is None:
                if self.streamed is not None:
                    self.streamed.stream.free()
                on_stage("encoding words and first frames")
                ready = self._clip_codecs.encode([self._part(turn) for turn in some], settings.negative_prompt)
            else:
                ready = encoded[start : start + ahead]
            self._load_towers(on_stage)
            for turn, inputs in zip(some, ready, strict=True):
                yield from self._turn(turn, inputs, settings, on_step, on_stage)

    def _load_towers(self, on_stage: Callable[[str], object]) -> None:
        """Bring the towers that stay while clips are made; not all processes have as fast a disk, so all wait."""
        if self.residency is not None:
            on_stage(LOADING)
            # An expert that waits on the host is read to there, and comes for its steps.
            self.residency.read_ahead(*(name for name in EXPERTS if not self.residency.lingers(name)))
            with self.residency.stage(LOAD_TOWERS):
                self.processes.wait_for_first()

    def _part(self, turn: Sequence[Sequence[Request]]) -> Sequence[Request]:
        """The batch of a turn that this process works on, empty where there is none; the last turn may have too few.

        FSDP gathers weights from all ranks, so a rank without clips left runs another rank's batch.
        """
        rank = self.processes.data_rank
        return turn[rank] if rank < len(turn) else turn[-1] if self.sharded else ()

    def _turn(
        self,
        turn: Sequence[Sequence[Request]],
        inputs: Encoded,
        settings: SampleSettings,
        on_step: Callable[[Step], None] | None,
        on_stage: Callable[[str], object],
    ) -> Iterator[Clip | None]:
        """Make one batch in each data-parallel group."""
        place, part = self.processes, self._part(turn)
        made: Iterator[Clip | None] = iter(())
        if part:
            latents = self._denoise(part, inputs, settings, on_step, on_stage)
            if place.data_rank < len(turn):
                made = self._clip_codecs.decode(latents, on_stage)
        if place.is_first:
            yield from made
            on_stage("collecting clips of other groups")
            for group, requests in enumerate(turn[1:], 1):
                for _ in requests:
                    yield self._received(group)
            return
        for clip in made:
            if clip is not None:
                place.send_to_first(torch.from_numpy(clip.pictures), torch.from_numpy(clip.audio))
        yield from (None for requests in turn for _ in requests)

    def _received(self, group: int) -> Clip:
        clip = self.shape
        pictures = self.processes.received(group, (clip.frames, clip.height, clip.width, 3), torch.uint8)
        return Clip(
            pictures.numpy(), self.processes.received(group, (self._clip_codecs.samples,), torch.float32).numpy()
        )

    def _denoise(
        self,
        requests: Sequence[Request],
        inputs: Encoded,
        settings: SampleSettings,
        on_step: Callable[[Step], None] | None,
        on_stage: Callable[[str], object],
    ) -> Latents:
        # The tower in use during sampling: where experts wait on the host they move, these stay.
        device = self.device or self.mova.audio_dit.head.head.weight.device
        conditions = self._clip_codecs.together(inputs, device)

        def stepped(step: Step) -> None:
            on_stage(f"step {step.index + 1} of {settings.steps} done")
            if on_step is not None:
                on_step(step)

        on_stage("first step")
        return denoise(
            self.mova,
            conditions,
            draw_noise(self.mova.config, [request.seed for request in requests], self.shape, device),
            self.schedule.inference(settings.steps),
            settings.guidance,
            self.prediction,
            fps=self.shape.fps,
            options=self.options,
            on_step=stepped,
            processes=self.processes,
            residency=self.residency,
            streamed=self.streamed,
        )

    def conditions(self, requests: Sequence[Request], negative_prompt: str, device: torch.device) -> Conditions:
        """Encode what a batch of clips is to show; tensors on `device`. Processes that make the clips together encode
        once: the first of them the words, the last one the pictures.
        """
        codecs = self._clip_codecs
        (inputs,) = codecs.encode([requests], negative_prompt)
        return codecs.together(inputs, device)

    @property
    def _clip_codecs(self) -> ClipCodecs:
        return ClipCodecs(self.codecs, self.shape, self.processes, self.residency)


def load_pipeline(
    folder: str | Path,
    backend: Backend,
    *,
    dtype: torch.dtype | None = None,
    clip: ClipConfig | None = None,
    memory: MemoryConfig | None = None,
    lora: Sequence[AdapterSpec] = (),
    processes: Processes | None = None,
    shard: bool = False,
    config: MovaConfig | None = None,
) -> Pipeline:
    """The pipeline of a model folder on the backend's device, which reads weights when their stages come.

    dtype, clip, memory: as of `Pipeline.from_pretrained`. lora: adapters, added together. processes: this one's place
    among several; it has the codecs that it needs. shard: and its part of the weights. config: the model, where
    `open_model` has been asked already.
    Raises MovaError for whatever is missing or damaged.
    """
    folder, place, memory = Path(folder), processes or Processes(), memory or MemoryConfig()
    facts = trained(folder)
    config = config or mova_config_from_folder(folder)
    more: dict[str, Any] = {"dtype": dtype, "memory": memory, "shard": shard}
    more |= {"lora": lora}
    mova, codecs, residency, streamed = open_parts(folder, config, backend, place, **more)
    return Pipeline(
        mova,
        codecs,
        facts.schedule,
        facts.prediction,
        LoopOptions(facts.clean_first_frame, facts.bridge),
        clip,
        place,
        shard,
        residency.device,
        residency,
        streamed,
    )
