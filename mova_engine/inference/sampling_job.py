"""A sampling run's settings and inputs, read and checked before any weight is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mova_engine.adapters.reading import require_adapter
from mova_engine.backend import Backend, default_backend, get_backend
from mova_engine.checkpoints.locate import open_model
from mova_engine.config.adapter_spec import AdapterSpec, parse_adapter
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.sample import SampleConfig
from mova_engine.data.media.decode import Clip, probe, read_clip
from mova_engine.distributed.processes import Launch
from mova_engine.errors import MovaError
from mova_engine.inference.audio_alone import check_form
from mova_engine.inference.clip_generator import default_batch
from mova_engine.inference.command_settings import sample_settings, with_cache
from mova_engine.inference.extension import Extension
from mova_engine.inference.given_clip import STRIDE, GivenClip, Kept, Window, fitted_shape
from mova_engine.inference.loading import check_tiles
from mova_engine.inference.lossy_attention import check_attention
from mova_engine.inference.process_mesh import choose_shape
from mova_engine.inference.prompts.enhanced_prompt import EnhancedPrompt
from mova_engine.inference.requests import Prompt, Request, make_requests, read_frame, read_keyframes, read_prompts
from mova_engine.inference.sample_settings import SampleSettings, default_settings
from mova_engine.inference.unfinished import run_name

# What is kept of pictures and sound, by what `SampleConfig.given` names.
_KEPT: dict[str | None, tuple[Kept, Kept]] = {
    None: ("none", "none"),
    "video": ("all", "none"),
    "audio": ("none", "all"),
}


@dataclass(frozen=True)
class SamplingJob:
    """A sampling run whose settings and inputs have been read and checked; no weights are loaded yet.

    enhanced: what became of the prompt of each clip of `work`, whose requests have the resulting text; empty where
    prompts are not enhanced.
    """

    config: SampleConfig
    backend: Backend
    folder: Path
    model: MovaConfig
    lora: list[AdapterSpec]
    settings: SampleSettings
    work: list[tuple[Prompt, Request]]
    mesh: MeshShape
    extension: Extension | None = None
    source: Clip | None = None
    enhanced: tuple[EnhancedPrompt, ...] = ()

    @property
    def clip(self) -> ClipConfig:
        """The clips' shape."""
        return self.model.clip

    @property
    def name(self) -> str:
        """The run's, by all that decides its clips."""
        return run_name(self.config, self.folder, self.lora, self.settings, self.work, self.source)


def read_job(config: SampleConfig, launch: Launch) -> SamplingJob:
    """Read and check everything that needs no weights. Raises MovaError for what cannot be used."""
    backend = get_backend(config.device) if config.device else default_backend()
    if config.attention != "exact":
        check_attention(config.attention, backend)
    console = Console(stderr=True, quiet=launch.rank > 0, soft_wrap=True, markup=False, highlight=False)
    folder, model = open_model(config.checkpoint, config.clip, console.print, sound=config.audio_alone)
    lora = [parse_adapter(each, config.lora_alpha) for each in config.lora]
    for each in lora:
        require_adapter(each.path)
    settings = sample_settings(config, default_settings(model))
    if config.exact_steps is not None and config.exact_steps >= settings.count:
        console.print(
            f"warning: with {config.exact_steps} exact steps of {settings.count} attention {config.attention} is "
            "checked, and used in none"
        )
    if config.audio_alone:
        if launch.world > 1:
            raise MovaError("--audio-alone: sound is made by one process: leave torchrun out")
        check_form(settings.guidance)
    given = _given(config)
    if given is not None:
        shape, said = fitted_shape(given, model.clip, config.clip.frames is not None)
        model = replace(model, clip=shape)
        if said:
            console.print(said)
    work = _work(config, model.clip, given)
    mesh = choose_shape(config.parallel, launch, model, settings.guidance, len(work))
    check_tiles(config.memory, model, mesh.clip_ranks)
    settings = with_cache(config, folder, model, settings, lora, console.print)
    if settings.first_block is not None and launch.world > 1:
        raise MovaError("--cache adaptive is for one process; a planned one, --cache 1.6, serves several")
    extension, source = _extension(config, model.clip, launch)
    return SamplingJob(config, backend, folder, model, lora, settings, work, mesh, extension, source)


def _extension(config: SampleConfig, shape: ClipConfig, launch: Launch) -> tuple[Extension | None, Clip | None]:
    """How far clips are extended, and the clip from which they go on."""
    if config.seconds is None:
        return None, None
    if launch.world > 1:
        raise MovaError("--seconds: clips are extended by one process: leave torchrun out")
    extension, source = Extension.of(shape, config.seconds, config.overlap), None
    if config.extend is not None:
        # As many frames as the model's clips can have, 4n+1. Declared durations are rounded, mostly to 1 ms.
        frames = round(probe(config.extend).duration * shape.fps)
        length = max(1, (frames - 1) // STRIDE * STRIDE + 1)
        read = read_clip(config.extend, replace(shape, frames=length), silent="zeros")
        source = Clip(read.pictures, read.audio[: extension.sample(length)])
        if length >= extension.frames:
            raise MovaError(
                f"{config.extend} lasts {length / shape.fps:.3f} s already: --seconds is its length with what is added"
            )
        # Refused before any weight is loaded.
        extension.continued(source)
    return extension, source


def with_enhanced(job: SamplingJob, enhanced: Sequence[EnhancedPrompt]) -> SamplingJob:
    """The job with enhanced prompts in its requests, one for each clip."""
    work = [
        (prompt, replace(request, caption=each.prompt))
        for (prompt, request), each in zip(job.work, enhanced, strict=True)
    ]
    return replace(job, work=work, enhanced=tuple(enhanced))


def batch_of(job: SamplingJob) -> int:
    """How many clips are made at a time, by each data-parallel group."""
    if job.settings.first_block is not None:
        return 1
    return job.config.batch or default_batch(job.clip, -(-len(job.work) // job.mesh.data_parallel))


def _work(config: SampleConfig, shape: ClipConfig, given: GivenClip | None) -> list[tuple[Prompt, Request]]:
    image = read_frame(config.image, shape, config.start) if config.image else None
    if given is not None:
        given.check(shape)
    from_file = given.path if given is not None else config.extend or config.image
    source = None if from_file is None else str(from_file)
    if config.prompts is None:
        prompts = [Prompt(config.prompt or "", image, source, given=given, file=config.image, start=config.start)]
    else:
        prompts = read_prompts(config.prompts, shape, _KEPT[config.given], frames=not config.audio_alone)
        if image is not None:
            if any(prompt.first_frame is not None for prompt in prompts):
                raise MovaError(f"--image and {config.prompts} both give first frames: leave --image out")
            first: dict[str, Any] = {
                "first_frame": image,
                "source": source,
                "file": config.image,
                "start": config.start,
            }
            prompts = [replace(prompt, **first) for prompt in prompts]
    last_frame = read_frame(config.last_image, shape) if config.last_image else None
    keyframes = read_keyframes(config.keyframe, shape)
    if last_frame is not None and any(index == shape.frames - 1 for index, _ in keyframes):
        raise MovaError("--last-image and a --keyframe both give the last picture: leave one of them out")
    count = len(prompts) if config.count is None else config.count
    return make_requests(prompts, count, config.seed, last_frame, keyframes)


def _given(config: SampleConfig) -> GivenClip | None:
    """What the command gives of its one clip."""
    if config.video is not None:
        return replace(GivenClip.pictures(config.video), start=config.start)
    if config.audio is not None:
        return replace(GivenClip.sound(config.audio), start=config.start)
    if config.retake is None or config.window is None:
        return None
    window = Window(*config.window)
    video: Kept = "all" if config.retake_of == "audio" else window
    return GivenClip(config.retake, video, "all" if config.retake_of == "video" else window)
