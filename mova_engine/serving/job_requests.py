"""A job as the pipeline's request: its pictures read, its settings those of `mova sample`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import Clip, probe, read_clip
from mova_engine.errors import MovaError
from mova_engine.inference.command_settings import sample_settings, with_cache
from mova_engine.inference.extension import Extension
from mova_engine.inference.given_clip import STRIDE, GivenClip, Kept, Window
from mova_engine.inference.pipeline import Pipeline
from mova_engine.inference.requests import Request, read_frame
from mova_engine.inference.sample_settings import SampleSettings, default_settings
from mova_engine.serving.video_job import VideoSettings


@dataclass(frozen=True)
class JobRequest:
    """What the pipeline makes of a job. shape: of a window. extension, source: of a clip that is continued."""

    request: Request
    settings: SampleSettings
    shape: ClipConfig
    extension: Extension | None = None
    source: Clip | None = None

    @property
    def frames(self) -> int:
        """Of the whole clip."""
        return self.shape.frames if self.extension is None else self.extension.frames

    @property
    def windows(self) -> int:
        """How many times the pipeline runs."""
        if self.extension is None:
            return 1
        return self.extension.windows(0 if self.source is None else len(self.source.pictures))


def read_request(
    settings: VideoSettings, file: Callable[[str], Path], pipeline: Pipeline, checkpoint: Path, folder: Path
) -> JobRequest:
    """Read a job's inputs. file: where the job's file of a name is. checkpoint: as it was typed; folder: the model's.

    Raises MovaError for what cannot be made of them.
    """
    model = pipeline.mova.config
    extends = settings.mode == "extension"
    frames = model.clip.frames if extends else settings.frames
    shape = replace(model.clip, frames=frames, height=settings.height, width=settings.width, fps=settings.fps)
    made = _sample_settings(settings, pipeline, checkpoint, folder, shape)
    first = read_frame(str(file("first.png")), shape) if settings.first_frame and not extends else None
    last = read_frame(str(file("last.png")), shape) if settings.last_frame else None
    given = _given(settings, file) if settings.mode == "edit" else None
    if given is not None:
        given.check(shape)
        if given.video != "none" and not (isinstance(given.video, Window) and given.video.begin == 0):
            first = None
    adapters = dict(settings.adapters) if pipeline.adapters is not None else None
    request = Request(settings.words, settings.seed, first, last, given, adapters)
    if not extends:
        return JobRequest(request, made, shape)
    source = file("input.mp4")
    length = max(1, (round(probe(source).duration * shape.fps) - 1) // STRIDE * STRIDE + 1)
    extension = Extension(shape, settings.frames, Extension.of(shape, settings.frames / shape.fps, None).overlap)
    read = read_clip(source, replace(shape, frames=length), silent="zeros")
    clip = Clip(read.pictures, read.audio[: extension.sample(length)])
    if length >= extension.frames:
        raise MovaError(f"the clip has {length} frames already: ask for more than those")
    extension.continued(clip)
    return JobRequest(request, made, shape, extension, clip)


def _given(settings: VideoSettings, file: Callable[[str], Path]) -> GivenClip:
    """What an edit keeps of its source."""
    window: Kept = "none" if settings.window is None else Window(*settings.window)
    if settings.window is None and settings.edit_of == "both":
        raise MovaError("an edit makes pictures or sound anew, or a window of both: say edit_of, or a window")
    video: Kept = "all" if settings.edit_of == "audio" else window
    return GivenClip(file("input.mp4"), video, "all" if settings.edit_of == "video" else window)


def _sample_settings(
    settings: VideoSettings, pipeline: Pipeline, checkpoint: Path, folder: Path, shape: ClipConfig
) -> SampleSettings:
    """The settings by the command's own rules, which refuse what has no effect."""
    config = settings.sample_config(checkpoint)
    model = replace(pipeline.mova.config, clip=shape)
    made = sample_settings(config, default_settings(model))
    return with_cache(config, folder, model, made, [], lambda _: None)
