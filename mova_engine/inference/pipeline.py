"""The sampling pipeline: encode a prompt and a first frame, denoise, decode to a clip."""

# Some of torch's functions are not fully typed. Arguments are checked at run time whatever their annotation.
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
from mova_engine.config.byte_sizes import check_bytes
from mova_engine.config.clip import ClipSettings
from mova_engine.config.memory import MemoryConfig, memory_of_word
from mova_engine.config.model import COMPONENTS, ClipConfig, MovaConfig
from mova_engine.config.stages import CODEC_PARTS, EXPERTS, LOAD_TOWERS
from mova_engine.data.media.decode import Clip
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.active_adapters import ActiveAdapters, adapters_of, check_adapters
from mova_engine.inference.clip_codecs import ClipCodecs, Encoded
from mova_engine.inference.denoising import LoopOptions, Observed, Step, denoise, draw_noise
from mova_engine.inference.generated_clip import GeneratedClip
from mova_engine.inference.given_clip import GivenClip
from mova_engine.inference.loading import open_parts, trained
from mova_engine.inference.requests import OfClips, Request, read_frame, strengths_of
from mova_engine.inference.sample_settings import SampleSettings, default_settings
from mova_engine.inference.sampling_memory import choose_for_sampling
from mova_engine.inference.turns import Turn, batched, part_of, turns_of
from mova_engine.inference.velocities import Latents
from mova_engine.memory.chosen_memory import ChosenMemory
from mova_engine.memory.residency import Residency
from mova_engine.models.mova import Mova

# The default batch has about this many video tokens, and at most this many clips; at the released sizes it is one clip.
BATCH_TOKENS, MOST_CLIPS = 4096, 16
# Clips whose prompts and frames are encoded before the first of them is denoised; at 360p 18 MB of host memory each.
ENCODED_AHEAD = 256
# The stage passed to `on_stage` whose duration depends on the disk.
LOADING = "loading towers"
# The stage with which denoising of a batch begins.
FIRST_STEP = "first step"
NO_CODECS = Codecs(None, None, None)
# A file, or pixels uint8 [h, w, 3].
Picture = str | Path | np.ndarray | None


def default_batch(clip: ClipConfig, count: int) -> int:
    """The default batch size for `count` clips: many small clips, or one of a released size, keep a device busy."""
    return max(1, min(MOST_CLIPS, BATCH_TOKENS // clip.video_tokens, count))


@dataclass
class Pipeline:
    """A model with its codecs and text encoder, which makes clips from prompts.

    schedule, prediction and the first three of options must be those of the training.
    clip: shape of the clips; None: `mova.config.clip`. processes: the processes of the run, each of which has its own
    pipeline with the codecs that `loading.own_codecs` names. sharded: each process holds a shard of the weights.
    device: where the towers compute; None: where their weights are. residency: moves the parts to the device for their
    stages; None: all of them are on their devices. chosen: what the planner chose, where it was asked to. adapters:
    switches adapters on and off between clips; None: the pipeline takes none.
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
    chosen: ChosenMemory | None = None
    adapters: ActiveAdapters | None = None

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
        memory: MemoryConfig | str | None = None,
        vram: str | None = None,
        ram: str | None = None,
        lora: str | Path | Sequence[str | Path] | None = None,
    ) -> "Pipeline":
        """Open a model folder, a training run (its newest checkpoint) or a Hugging Face cache folder.

        device: "cpu", "cuda" or "npu"; None: the first of npu, cuda, cpu that works. dtype: compute dtype of the
        towers, such as `torch.bfloat16`; None: as stored. clip: clip sizes other than the model's own, such as
        `ClipSettings(height=352, width=640)`.
        lora: one or several adapters to add: a LoRA run, its checkpoint, or a file or folder of any dialect; as text
        also with the layers that it adapts and a strength, "style.safetensors:high:0.8".
        memory: where weights are while they are not used, `mova_engine.MemoryConfig(idle=...)`. "host" (default): in
        host memory, so that the device holds only the parts of one stage. "files": nowhere, they are read again.
        "device": on the device. `expert="host"`: only one video expert is on the device at a time. `weights="host"` or
        "files": layers are streamed to the device one by one, so that it holds two of them at a time. Or a word for
        several settings, `mova sample --memory`: "resident", "expert", "stream", "disk", or "auto": what the planner
        chooses for this device, by the model's own settings of sampling. vram, ram: the most of the device's and of the
        host's memory to use, such as "12GB"; None: what is free. `pipeline.chosen.words()` says what was chosen.
        Weights are read when the first call needs them. Later calls read no file again, except with idle="files".
        Raises MovaError for missing or damaged files, and for arguments of a wrong type.

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
            ("memory", memory, (MemoryConfig, str, type(None))),
            ("vram", vram, (str, type(None))),
            ("ram", ram, (str, type(None))),
            ("lora", lora, (str, Path, list, tuple, type(None))),
        ):
            if not isinstance(value, kinds):
                wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise MovaError(f"Pipeline.from_pretrained: {name} must be {wanted}, got {value!r}")
        backend = get_backend(device) if device else default_backend()
        found, config = open_model(folder, clip or ClipSettings())
        given = [] if lora is None else [lora] if isinstance(lora, str | Path) else lora
        adapters = [parse_adapter(str(each)) for each in given]
        settings = memory_of_word(memory) if isinstance(memory, str) else memory or MemoryConfig()
        check_bytes(vram=vram, ram=ram)
        planned = choose_for_sampling(
            settings,
            found,
            config,
            backend,
            dtype=dtype,
            evaluations=Guidance(config.sampling.guidance).evaluations,
            batch=default_batch(config.clip, MOST_CLIPS),
            vram=vram,
            ram=ram,
            lora=adapters,
        )
        options: dict[str, Any] = {"dtype": dtype, "clip": config.clip, "lora": adapters, "config": config}
        made = load_pipeline(found, backend, memory=settings if planned is None else planned.config, **options)
        made.chosen = planned
        if planned is not None and planned.sequential:
            made.options = replace(made.options, batch_guidance=False)
        return made

    @overload
    def __call__(
        self,
        prompt: str,
        image: Picture = None,
        seed: int = 0,
        *,
        last_image: Picture = None,
        given: GivenClip | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
        adapters: OfClips = None,
    ) -> GeneratedClip: ...

    @overload
    def __call__(
        self,
        prompt: list[str] | tuple[str, ...],
        image: Picture = None,
        seed: int = 0,
        *,
        last_image: Picture = None,
        given: GivenClip | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
        adapters: OfClips = None,
    ) -> list[GeneratedClip]: ...

    def __call__(
        self,
        prompt: str | list[str] | tuple[str, ...],
        image: Picture = None,
        seed: int = 0,
        *,
        last_image: Picture = None,
        given: GivenClip | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
        adapters: OfClips = None,
    ) -> GeneratedClip | list[GeneratedClip]:
        """Make a clip from a prompt, or a list of clips from several prompts. Clip i has the seed `seed + i`.

        image, last_image: first and last frame of all clips: a picture file, a video file (its first frame), or uint8
        [h, w, 3]. They are resized and cropped to the clip. given: what of the clip is given, such as
        `GivenClip.pictures("rain.mp4")`, for which sound is made. steps, guidance: None: the model's own. batch: clips
        that are denoised at once; None: `default_batch`. adapters: strengths of `pipeline.adapters` for these clips, by
        name (`ActiveAdapters.set`), or a list with those of each clip; None: those that are set. For a single process.
        Raises MovaError as `generate` does.
        """
        settings = default_settings(self.mova.config)
        stated = {"steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
        settings = replace(settings, **{name: value for name, value in stated.items() if value is not None})
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        first, last, chosen = self._frame(image), self._frame(last_image), strengths_of(prompts, adapters)
        if given is not None:
            given.check(self.shape)
        requests = [Request(x, seed + i, first, last, given, chosen[i]) for i, x in enumerate(prompts)]
        batch = batch or default_batch(self.shape, len(requests))
        clips = [
            self._generated(request, clip)
            for request, clip in zip(requests, self.generate(requests, settings, batch=batch), strict=True)
        ]
        return clips[0] if isinstance(prompt, str) else clips

    def _generated(self, request: Request, clip: Clip | None) -> GeneratedClip:
        if clip is None:
            raise MovaError("with several processes only rank 0 gets the clips: use `generate`")
        fps, rate = self.shape.fps, self.shape.sample_rate
        return GeneratedClip(clip.pictures, clip.audio[None], fps, rate, request.caption, request.seed)

    def _frame(self, picture: Picture) -> np.ndarray | None:
        return read_frame(picture, self.shape) if isinstance(picture, str | Path) else picture

    def read_weights(self) -> None:
        """Read all weights into host memory now instead of during the first call, for a server that must be ready.

        With `MemoryConfig(idle="files")` this does nothing.
        """
        if self.residency is not None:
            self.residency.read_ahead(*CODEC_PARTS, *COMPONENTS)

    @property
    def shape(self) -> ClipConfig:
        """The shape of the generated clips."""
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
        """Yield a clip per request, in order, as each batch of `batch` clips is done. Its pictures and its sound have
        the same duration. A clip does not depend on the other clips of its batch.

        on_step: called after each denoising step. on_stage: called with a description of the next stage.
        encoded: the results of `ClipCodecs.encode` for each batch, for a single process; None: encode now.
        With several processes all pass the same requests, and each data-parallel group makes one batch at a time. Rank
        0 yields the clips, the others yield None for each. Raises MovaError if latents are not finite.
        """
        if batch < 1:
            raise MovaError(f"batch must be at least 1, got {batch}")
        check_adapters(self.adapters, requests)
        turns = turns_of(requests, batch, self.processes.shape.data_parallel)
        ahead = max(1, ENCODED_AHEAD // batch)
        for start in range(0, len(turns), ahead):
            some = turns[start : start + ahead]
            if encoded is None:
                if self.mova.streamed is not None:
                    self.mova.streamed.free()
                on_stage("encoding words and first frames")
                ready = self._clip_codecs.encode([self._part(turn) for turn in some], settings.negative_prompt)
            else:
                ready = encoded[start : start + ahead]
            self._load_towers(on_stage)
            for turn, inputs in zip(some, ready, strict=True):
                yield from self._turn(turn, inputs, settings, on_step, on_stage)

    def latents(
        self,
        requests: Sequence[Request],
        settings: SampleSettings,
        *,
        batch: int = 1,
        on_step: Callable[[Step], None] | None = None,
        observe: Callable[[Observed], None] | None = None,
    ) -> Iterator[Latents]:
        """Yield the clean latents of each batch, which are not decoded. observe: see `denoise`. The rest: as of
        `generate`. For a single process.
        """
        for some in batched(requests, batch):
            (inputs,) = self._clip_codecs.encode([some], settings.negative_prompt)
            self._load_towers(lambda _: None)
            with adapters_of(self.adapters, some):
                yield self._denoise(some, inputs, settings, on_step, lambda _: None, observe)

    def _load_towers(self, on_stage: Callable[[str], object]) -> None:
        """Load the towers that stay on the device between stages. All processes wait for the one with the slowest
        disk.
        """
        if self.residency is not None:
            on_stage(LOADING)
            # An expert that waits on the host is read to there, and comes for its steps.
            self.residency.read_ahead(*(name for name in EXPERTS if not self.residency.lingers(name)))
            with self.residency.stage(LOAD_TOWERS):
                self.processes.wait_for_first()

    def _part(self, turn: Turn) -> Sequence[Request]:
        """The batch of a turn that this process works on."""
        return part_of(turn, self.processes.data_rank, self.sharded)

    def _turn(
        self,
        turn: Turn,
        inputs: Encoded,
        settings: SampleSettings,
        on_step: Callable[[Step], None] | None,
        on_stage: Callable[[str], object],
    ) -> Iterator[Clip | None]:
        """Make one batch in each data-parallel group."""
        place, part = self.processes, self._part(turn)
        made: Iterator[Clip | None] = iter(())
        if part:
            with adapters_of(self.adapters, part):
                latents = self._denoise(part, inputs, settings, on_step, on_stage)
            if place.data_rank < len(turn):
                made = self._clip_codecs.decode(latents, part, on_stage)
        if place.is_first:
            yield from made
            on_stage("collecting clips of other groups")
            for group, requests in enumerate(turn[1:], 1):
                for _ in requests:
                    yield self._receive_clip(group)
            return
        for clip in made:
            if clip is not None:
                place.send_to_first(torch.from_numpy(clip.pictures), torch.from_numpy(clip.audio))
        yield from (None for requests in turn for _ in requests)

    def _receive_clip(self, group: int) -> Clip:
        """In rank 0: receive the next clip of data-parallel group `group`."""
        clip = self.shape
        pictures = self.processes.receive_from(group, (clip.frames, clip.height, clip.width, 3), torch.uint8)
        return Clip(
            pictures.numpy(), self.processes.receive_from(group, (self._clip_codecs.samples,), torch.float32).numpy()
        )

    def _denoise(
        self,
        requests: Sequence[Request],
        inputs: Encoded,
        settings: SampleSettings,
        on_step: Callable[[Step], None] | None,
        on_stage: Callable[[str], object],
        observe: Callable[[Observed], None] | None = None,
    ) -> Latents:
        # The audio tower is on the device during all steps, the video experts may be on the host.
        device = self.device or self.mova.audio_dit.head.head.weight.device
        conditions = self._clip_codecs.gather(inputs, requests, device)

        def stepped(step: Step) -> None:
            on_stage(f"step {step.index + 1} of {settings.count} done")
            if on_step is not None:
                on_step(step)

        on_stage(FIRST_STEP)
        return denoise(
            self.mova,
            conditions,
            draw_noise(self.mova.config, [request.seed for request in requests], self.shape, device),
            settings.noise_levels(self.schedule),
            settings.guidance,
            self.prediction,
            fps=self.shape.fps,
            options=replace(
                self.options,
                solver=settings.solver,
                reused=settings.reused,
                first_block=settings.first_block,
            ),
            on_step=stepped,
            observe=observe,
            processes=self.processes,
            residency=self.residency,
        )

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
    """Open the pipeline of a model folder on the backend's device. Weights are read when their stages start.

    dtype, clip, memory: as in `Pipeline.from_pretrained`. lora: adapters, added together.
    processes: this process's position among several; the pipeline gets only the codecs that this process needs.
    shard: the pipeline gets only this process's shard of the weights. config: the folder's model, if already read.
    Raises MovaError for missing or damaged files.
    """
    folder, place, memory = Path(folder), processes or Processes(), memory or MemoryConfig()
    facts = trained(folder)
    config = config or mova_config_from_folder(folder)
    more: dict[str, Any] = {"dtype": dtype, "memory": memory, "shard": shard}
    more |= {"lora": lora}
    mova, codecs, residency, adapters = open_parts(folder, config, backend, place, **more)
    return Pipeline(
        mova,
        codecs,
        facts.schedule,
        facts.prediction,
        LoopOptions(facts.clean_first_frame, facts.bridge, facts.start_frames > 0),
        clip,
        place,
        shard,
        residency.device,
        residency,
        adapters=adapters,
    )
