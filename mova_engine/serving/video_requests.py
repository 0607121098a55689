"""From a request to a job: what is sent, checked against the model, as settings and the files of its folder."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mova_engine.config.model import ClipConfig
from mova_engine.data.text import shown
from mova_engine.errors import MovaError, suggest
from mova_engine.serving.api_errors import ApiError, bad_field, no_video
from mova_engine.serving.input_files import InputFiles, png_bytes
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.request_body import SentBody, parse_json
from mova_engine.serving.request_fields import (
    CREATE,
    EDIT,
    EXTEND,
    REMIX,
    RequestField,
    checked,
    flat_fields,
    unknown_field,
)
from mova_engine.serving.service import FRAME_STEP, ServedModel, Service, frames_of_seconds
from mova_engine.serving.video_job import VideoJob, VideoSettings, new_id

FIRST, LAST, INPUT = "first.png", "last.png", "input.mp4"
_SIZE = re.compile(r"(\d{1,5})[xX](\d{1,5})", re.ASCII)
_OPTION = re.compile(r"--([a-z][a-z-]*)")
# What `mova sample` calls settings that have other names here.
_NAMES = {"text-scale": "guidance_scale", "audio-text-scale": "audio_guidance_scale", "steps": "num_inference_steps"}
_FILE_FIELDS = ("picture", "clip")


@dataclass(frozen=True)
class NewVideo:
    """A job that is not in the store yet, and the files of its folder by name."""

    job: VideoJob
    inputs: Mapping[str, bytes]


@dataclass(frozen=True)
class VideoRequests:
    """Makes jobs from requests. All methods raise ApiError for what cannot be made, and decode what was sent."""

    service: Service
    store: JobStore
    files: InputFiles

    def create(self, body: SentBody, owner: str) -> NewVideo:
        """A clip from a prompt, and a first and last frame where they are sent."""
        given = self._fields(body, CREATE)
        model = self.service.model(given.get("model"))
        clip, words = self._shape(model, given)
        first = self.files.picture("input_reference", body, given.get("input_reference"), clip)
        last = self.files.picture("last_frame", body, given.get("last_frame"), clip)
        settings = VideoSettings(
            prompt=_prompt(given),
            width=clip.width,
            height=clip.height,
            frames=clip.frames,
            fps=clip.fps,
            seconds=words,
            size=f"{clip.width}x{clip.height}",
            seed=given.get("seed", secrets.randbelow(1 << 31)),
            first_frame=first is not None,
            last_frame=last is not None,
        )
        pictures = {FIRST: first, LAST: last}
        inputs = {name: png_bytes(picture) for name, picture in pictures.items() if picture is not None}
        return self._job(model, settings, given, owner, inputs)

    def remix(self, body: SentBody, source: VideoJob) -> NewVideo:
        """A clip as an earlier one, pictures and seed too, but for what is sent."""
        given = self._fields(body, REMIX)
        model = self.service.model(source.model)
        settings = replace(source.settings, prompt=_prompt(given), enhanced_prompt=None, deadline_s=None)
        settings = replace(settings, seed=given.get("seed", settings.seed))
        inputs = {name: data for name in (FIRST, LAST, INPUT) if (data := self._copied(source.id, name)) is not None}
        wanted = {FIRST: settings.first_frame, LAST: settings.last_frame, INPUT: settings.mode != "generate"}
        if any(needed and name not in inputs for name, needed in wanted.items()):
            raise no_video()  # it is being deleted
        return self._job(model, settings, given, source.owner, inputs, source.id)

    def edit(self, body: SentBody, owner: str) -> NewVideo:
        """A window of a clip anew, or one of its modalities; or, where neither is named, all of it from its first frame
        on.
        """
        given = self._fields(body, EDIT)
        model = self.service.model(given.get("model"))
        clip, data, source = self._source(model, body, given, owner, 1)
        frames = min(clip.frames, model.most_frames(clip.width, clip.height))
        clip = replace(clip, frames=frames)
        window = given.get("window")
        if window is None and given.get("edit_of", "both") == "both":
            first = self.files.first_frame("video", data, clip)
            settings = replace(self._from_source(given, clip, mode="generate"), first_frame=True)
            return self._job(model, settings, given, owner, {FIRST: png_bytes(first)}, source)
        settings = self._from_source(given, clip, mode="edit")
        if window is not None and window[1] > settings.frames / settings.fps + 0.5 / settings.fps:
            raise bad_field("window", f"the clip lasts {settings.frames / settings.fps:.3f} s, window ends after it")
        return self._job(model, settings, given, owner, {INPUT: data}, source)

    def extend(self, body: SentBody, owner: str) -> NewVideo:
        """A clip that goes on from where another ends. seconds: of what is new."""
        given = self._fields(body, EXTEND)
        model = self.service.model(given.get("model"))
        if "seconds" not in given:
            raise bad_field("seconds", "seconds is wanted: how much longer the clip becomes", "missing_field")
        clip, data, source = self._source(model, body, given, owner, model.clip.frames)
        total = frames_of_seconds((clip.frames - 1) / clip.fps + given["seconds"], clip.fps)
        if total <= max(clip.frames, model.clip.frames):
            least = (max(clip.frames, model.clip.frames) - clip.frames + FRAME_STEP) / clip.fps
            raise bad_field("seconds", f"of this clip at least {least:.3g} s can be made, got {given['seconds']:g}")
        if total / clip.fps > self.service.limits.seconds:
            most = f"{self.service.limits.seconds:g}"
            raise bad_field("seconds", f"the whole clip would last {total / clip.fps:.4g} s, the most is {most}")
        settings = self._from_source(given, replace(clip, frames=total), mode="extension")
        return self._job(model, settings, given, owner, {INPUT: data}, source)

    def _fields(self, body: SentBody, known: Mapping[str, RequestField]) -> dict[str, Any]:
        """The fields in their own types; of pictures and clips what stands for them."""
        for name in body.files:
            if name not in known or known[name].kind not in _FILE_FIELDS:
                raise unknown_field(name, tuple(each for each in known if known[each].kind in _FILE_FIELDS))
        found = flat_fields(body.fields, known)
        if double := body.files.keys() & found.keys():
            raise bad_field(min(double), f"{min(double)} is sent twice, as a file and as a field", "duplicate_field")
        values = {
            name: value if known[name].kind in _FILE_FIELDS else checked(known[name], value)
            for name, value in found.items()
        }
        if not values.get("prompt", "").strip():
            raise bad_field("prompt", "a prompt is wanted: what to show and sound", "missing_field")
        return values

    def _shape(self, model: ServedModel, given: Mapping[str, Any]) -> tuple[ClipConfig, str]:
        """The clip that is made, and its seconds in words."""
        own = model.clip
        fps = float(given.get("fps", own.fps))
        if fps > self.service.limits.fps:
            raise bad_field("fps", f"fps must be at most {self.service.limits.fps:g}, got {fps:g}")
        width, height = _wanted_size(given, own)
        fewest = 1 if "seconds" in given or "num_frames" in given else model.default_frames
        width, height = model.checked_size(width, height, fewest, "size" if "size" in given else "width")
        if "seconds" in given and "num_frames" in given:
            raise bad_field("num_frames", "num_frames and seconds exclude one another")
        if "seconds" in given:
            seconds = given["seconds"]
            frames = frames_of_seconds(seconds, fps)
            if frames > (most := model.most_frames(width, height)):
                raise bad_field(
                    "seconds",
                    f"{seconds:g} s of {width}x{height} at {fps:g} fps are {frames} frames, and this server makes "
                    f"{most}: send seconds up to {(most - 1) / fps:.4g}, or num_frames",
                )
            return replace(own, width=width, height=height, frames=frames, fps=fps), f"{seconds:g}"
        frames = model.default_frames
        if "num_frames" in given:
            frames = model.checked_frames(width, height, given["num_frames"], "num_frames")
        return replace(own, width=width, height=height, frames=frames, fps=fps), f"{(frames - 1) / fps:.6g}"

    def _source(
        self, model: ServedModel, body: SentBody, given: Mapping[str, Any], owner: str, least: int
    ) -> tuple[ClipConfig, bytes, str | None]:
        """The shape of an edit's or extension's source, its bytes, and its id, None of a file. least: frames of its
        size that the model must be able to make at once.
        """
        sent = self.files.clip("video", body)
        if sent is not None:
            data, facts = sent
            length = round(facts.duration * model.clip.fps, 3)
            frames = max(1, (int(length) - 1) // FRAME_STEP * FRAME_STEP + 1)
            _check_fits(model, model.clip.width, model.clip.height, least)
            return replace(model.clip, frames=frames), data, None
        value = given.get("video")
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = parse_json(value)
            except ValueError as error:
                raise bad_field("video", f"video is no JSON: {error}") from None
        name = value.get("id") if isinstance(value, dict) and len(value) == 1 else value
        if not isinstance(name, str):
            raise bad_field("video", "video is a file, or an object with the id of a completed video", "missing_field")
        job = self.store.get(name, owner) if len(name) <= 64 else None
        if job is None:
            raise no_video()
        data = self._copied(job.id, "video.mp4") if job.status == "completed" else None
        if data is None:
            raise ApiError(400, "the source video is not completed", param="video", code="video_not_ready")
        of = job.settings
        _check_fits(model, of.width, of.height, least)
        return replace(model.clip, width=of.width, height=of.height, frames=of.frames, fps=of.fps), data, job.id

    def _from_source(self, given: Mapping[str, Any], clip: ClipConfig, mode: Any) -> VideoSettings:
        return VideoSettings(
            prompt=_prompt(given),
            width=clip.width,
            height=clip.height,
            frames=clip.frames,
            fps=clip.fps,
            seconds=f"{(clip.frames - 1) / clip.fps:.6g}",
            size=f"{clip.width}x{clip.height}",
            seed=given.get("seed", secrets.randbelow(1 << 31)),
            mode=mode,
        )

    def _copied(self, video: str, name: str) -> bytes | None:
        try:
            return self.store.file(video, name).read_bytes()
        except FileNotFoundError:
            return None

    def _job(
        self,
        model: ServedModel,
        settings: VideoSettings,
        given: Mapping[str, Any],
        owner: str,
        inputs: Mapping[str, bytes],
        source: str | None = None,
    ) -> NewVideo:
        """The job of settings, completed by those that are passed on as they are."""
        fields = {**CREATE, **EDIT}
        passed = {fields[name].setting: value for name, value in given.items() if fields[name].setting}
        settings = self._checked(model, replace(settings, **passed))
        job = VideoJob(
            id=new_id(),
            owner=owner,
            model=model.name,
            settings=settings,
            steps=settings.steps or model.steps,
            predicted_s=self.service.predict(model, settings),
            remixed_from=source,
        )
        return NewVideo(job, {**inputs, "request.json": json.dumps(asdict(settings), ensure_ascii=False).encode()})

    def _checked(self, model: ServedModel, settings: VideoSettings) -> VideoSettings:
        """The settings, if this model can be sampled so."""
        limits, form = self.service.limits, settings.guidance or model.guidance
        if form == "none" and settings.text_scale == 1:
            settings = replace(settings, text_scale=None)  # 1 is no guidance
        if (settings.steps or 1) > limits.steps:
            raise bad_field("num_inference_steps", f"at most {limits.steps} steps are made, got {settings.steps}")
        self._check_text(model, "prompt", settings.prompt, settings.enhanced_prompt is None)
        self._check_text(model, "negative_prompt", settings.negative_prompt)
        if settings.enhanced_prompt is not None:
            if not settings.enhanced_prompt.strip():
                raise bad_field("enhanced_prompt", "enhanced_prompt is empty: leave it out")
            self._check_text(model, "enhanced_prompt", settings.enhanced_prompt)
        if settings.enhance not in ("none", self.service.enhance):
            raise bad_field("enhance", f"this server enhances prompts by: {self.service.enhance}", "enhancement_off")
        for name in settings.adapters:
            if name not in model.adapters:
                known = ", ".join(model.adapters) or "none"
                near = suggest(name[:80], model.adapters)
                raise bad_field("adapters", f"unknown adapter '{shown(name[:80])}'.{near} Known: {known}")
        begin, end = settings.guide_from or 0.0, 1.0 if settings.guide_until is None else settings.guide_until
        if begin >= end:
            raise bad_field("guide_until", f"guidance must end after it begins, got {begin:g} and {end:g}")
        try:
            config = settings.sample_config(Path(model.name))
            config.check_guidance(form)
        except MovaError as error:
            raise bad_field(None, _OPTION.sub(lambda m: _NAMES.get(m[1], m[1].replace("-", "_")), str(error))) from None
        if config.cache_speedup > 1 and not model.calibrated:
            raise bad_field("cache", "this model was not calibrated: leave cache out, or send adaptive")
        return settings

    def _check_text(self, model: ServedModel, name: str, text: str, counts: bool = True) -> None:
        most = self.service.limits.prompt_characters
        if len(text) > most:
            raise bad_field(name, f"{name} has {len(text)} characters, more than {most}", "text_too_long")
        if counts and model.tokens is not None and (count := model.tokens.count(text)) > model.tokens.most:
            words = f"{name} has {count} tokens, and {model.name} reads {model.tokens.most}: shorten it"
            raise bad_field(name, words, "text_too_long")


def _check_fits(model: ServedModel, width: int, height: int, frames: int) -> None:
    """ApiError for a source of whose size the model cannot make so many frames at once."""
    if not model.fits(width, height, frames):
        most = model.most_frames(width, height)
        words = (
            f"the source is too large: of {width}x{height} {model.name} makes {most} frames at once, {frames} wanted"
        )
        raise bad_field("video", words, "video_too_large")


def _prompt(given: Mapping[str, Any]) -> str:
    return given["prompt"]


def _wanted_size(given: Mapping[str, Any], own: ClipConfig) -> tuple[int, int]:
    """(width, height) that was asked for; the model's own where nothing was."""
    sides = given.get("width"), given.get("height")
    if (sides[0] is None) != (sides[1] is None):
        raise bad_field("width" if sides[0] is None else "height", "width and height go together")
    if "size" not in given:
        return (own.width, own.height) if sides[0] is None else (sides[0], sides[1])  # type: ignore[return-value]
    match = _SIZE.fullmatch(given["size"].strip())
    if match is None:
        raise bad_field("size", f"size has the form WIDTHxHEIGHT, got '{shown(given['size'])}'")
    size = int(match[1]), int(match[2])
    if sides[0] is not None and sides != size:
        raise bad_field("size", "size and width, height state different sizes: send one of them")
    return size
