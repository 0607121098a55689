"""Encoding of prompts and frames before denoising, decoding of latents to pictures and sound after it."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mova_engine.checkpoints.folder import Codecs
from mova_engine.codecs import video_from_uint8, video_to_uint8
from mova_engine.config.model import ClipConfig
from mova_engine.config.stages import DECODE_AUDIO, DECODE_VIDEO, ENCODE_CLIPS, ENCODE_FRAMES, ENCODE_TEXT
from mova_engine.data.media.decode import Clip
from mova_engine.data.media.resize import crop_resize
from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.clip_sinks import Made, Sinks
from mova_engine.inference.given_clip import (
    Kept,
    Window,
    kept_audio_latents,
    kept_frames,
    kept_latent_frames,
    with_kept_pictures,
    with_kept_sound,
)
from mova_engine.inference.given_latents import GivenLatents
from mova_engine.inference.requests import Request
from mova_engine.inference.velocities import Conditions, Latents
from mova_engine.memory.residency import Residency, stage

WHITE = 255
Part = TypeVar("Part")


def _required(part: Part | None, what: str) -> Part:
    """Return `part`; raise MovaError if it is None, that is if this process was not given what its work needs."""
    if part is None:
        raise MovaError(f"this process has no {what}")
    return part


@dataclass
class Encoded:
    """What one process encoded of a batch, on the host.

    text: the features "text" [b, n, d] of the prompts and "empty" [1, n, d] of the negative prompt; None if another
    process encoded them. pictures: of each clip the "condition" [1, 20, t, h, w], and what the request gives: latents
    "video" [1, 16, t, h, w] and "audio" [1, 128, l]; empty if another process encoded them.
    """

    text: dict[str, Tensor] | None = None
    pictures: list[dict[str, Tensor]] = field(default_factory=list[dict[str, Tensor]])


@dataclass(frozen=True)
class ClipCodecs:
    """Encodes requests to conditions before denoising, and decodes latents to clips after it.

    The processes that make a clip together share this work. residency: moves text encoder and codecs to the device for
    their stages; None: they are there.
    """

    codecs: Codecs
    shape: ClipConfig
    processes: Processes
    residency: Residency | None

    @property
    def samples(self) -> int:
        """Audio samples of a clip. Decoded sound is cut to this: whole latents last longer than the pictures."""
        return round(self.shape.duration * self.shape.sample_rate)

    def encode(self, batches: Sequence[Sequence[Request]], negative_prompt: str) -> list[Encoded]:
        """Encode this process's share of each batch: the prompts of all batches, then the frames of all batches.

        Of the processes that make a clip together the first encodes prompts, and the last encodes frames.
        """
        clip = self.processes.clip
        found = [Encoded() for _ in batches]
        if clip.rank == 0 and any(batches):
            with stage(self.residency, ENCODE_TEXT):
                encoder = _required(self.codecs.text, "text encoder")
                empty = encoder.encode([negative_prompt]).cpu()
                for inputs, requests in zip(found, batches, strict=True):
                    if requests:
                        text = encoder.encode([request.caption for request in requests]).cpu()
                        inputs.text = {"text": text, "empty": empty}
        if clip.rank == clip.size - 1 and any(batches):
            encoded: dict[tuple[int, ...], dict[str, Tensor]] = {}
            given = any(request.given for requests in batches for request in requests)
            with stage(self.residency, ENCODE_CLIPS if given else ENCODE_FRAMES):
                for inputs, requests in zip(found, batches, strict=True):
                    for request in requests:
                        key = id(request.first_frame), id(request.last_frame), id(request.given), id(request.keyframes)
                        if key not in encoded:
                            encoded[key] = self._encode_pictures(request)
                        inputs.pictures.append(encoded[key])
        return found

    def gather(self, inputs: Encoded, requests: Sequence[Request], device: torch.device) -> Conditions:
        """Share what the processes that make the clips together have encoded; returns all of it, on `device`.

        Raises MovaError for requests of which not all give the same.
        """
        clip, rounds, shape = self.processes.clip, self.processes.rounds, self.shape
        kinds = {None if request.given is None else request.given.kind for request in requests}
        if len(kinds) > 1:
            raise MovaError("the requests of a batch must all give the same of their clips: pictures, sound or nothing")
        features, pictures = inputs.text, None
        if clip.rank == clip.size - 1:
            pictures = {name: torch.cat([each[name] for each in inputs.pictures]) for name in inputs.pictures[0]}
        if rounds is not None:
            features, pictures = rounds.broadcast(features, 0), rounds.broadcast(pictures, clip.size - 1)
        features, pictures = _required(features, "text features"), _required(pictures, "condition")
        text, empty = features["text"].to(device), features["empty"].to(device)
        video, audio = kinds.pop() or ("none", "none")
        return Conditions(
            pictures["condition"].to(device),
            text,
            empty.expand_as(text),
            _given_latents(pictures.get("video"), kept_latent_frames(video, shape), device),
            _given_latents(pictures.get("audio"), kept_audio_latents(audio, shape), device),
        )

    def decode(
        self, latents: Latents, requests: Sequence[Request], on_stage: Callable[[str], object], sinks: Sinks[Made]
    ) -> Generator[Made | None, None, None]:
        """Decode the latents of a batch: the pictures of all clips, one clip at a time, then their sound; yield what
        the sink of each clip made of them. What a request gives is not decoded: it is in the clip as it was given.

        A clip's pictures go to its sink as they are made, a few at a time. The processes that made the clips together
        each decode some rows of the pictures, and the last one decodes the sound. The first process has the sinks, the
        others yield None. on_stage: called with a description of each part of the work before it; what it raises gives
        the clips up that are not finished.
        """
        kept: list[tuple[Kept, Kept]] = [
            ("none", "none") if each.given is None else each.given.kind for each in requests
        ]
        first = self.processes.clip.rank == 0
        given: list[Clip | None] = [None] * len(requests)
        sounds: list[Tensor | None] = [None] * len(requests)
        with ExitStack() as opened:
            taken = [opened.enter_context(closing(sinks(each))) for each in requests] if first else []
            if any(video != "all" for video, _ in kept):
                with stage(self.residency, DECODE_VIDEO):
                    for index, video in enumerate(latents.video.split(1)):
                        clip = self._read(requests[index]) if first and isinstance(kept[index][0], Window) else None
                        with closing(self._decode_pictures(video, on_stage)) as parts:
                            for done, pictures in parts:
                                taken[index].add(self._with_given(pictures, done, clip, kept[index][0]))
                        given[index] = None if clip is None else replace(clip, video=None)
            if any(audio != "all" for _, audio in kept):
                on_stage("decoding sound")
                with stage(self.residency, DECODE_AUDIO):
                    sounds = [self._decode_sound(audio) for audio in latents.audio.split(1)]
            if not first:
                yield from (None for _ in requests)
                return
            for sink, request, (video, audio), clip, sound in zip(taken, requests, kept, given, sounds, strict=True):
                if video == "all" or (audio != "none" and clip is None):
                    clip = self._read(request)
                if clip is not None and video == "all":
                    sink.add(clip.pictures)
                yield sink.finish(self._sound(sound, clip, audio))

    def _read(self, request: Request) -> Clip | None:
        return None if request.given is None else request.given.read(self.shape)

    def _with_given(self, pictures: np.ndarray, first: int, given: Clip | None, kept: Kept) -> np.ndarray:
        """Pictures that were made, the clip's from `first` on; in their place, those that are kept of a given clip."""
        if given is None or not isinstance(kept, Window):
            return pictures
        return with_kept_pictures(pictures, given.pictures, kept, self.shape, first)

    def _sound(self, made: Tensor | None, given: Clip | None, kept: Kept) -> np.ndarray:
        """A clip's sound, of what was made and what is kept of a given clip."""
        if given is None or kept == "none":
            return _required(made, "sound").numpy()
        if made is None:
            return given.audio[: self.samples]
        return with_kept_sound(made.numpy(), given.audio, kept, self.shape)

    def _decode_pictures(
        self, latents: Tensor, on_stage: Callable[[str], object]
    ) -> Generator[tuple[int, np.ndarray], None, None]:
        """Latents [1, 16, t, h, w] -> parts uint8 [n, height, width, 3] on the host, each after the number of frames
        before it; none except in the first process.
        """
        place, clip, done = self.processes, self.shape, 0
        rows = place.rows(latents.shape[-2])
        if not rows.take(latents).shape[-2]:
            return
        height = clip.height // latents.shape[-2]
        on_stage("decoding")
        # As they are made: neither device nor host holds more than a few frames.
        with closing(_required(self.codecs.video, "video VAE").decode_frames(latents, rows)) as parts:
            for frames in parts:
                part = video_to_uint8(frames[0]).cpu()
                count = len(part)
                if place.rounds is not None:
                    shapes = [(count, height * own, clip.width, 3) for own in rows.lengths]
                    shares = place.rounds.collected(part, shapes)
                    part = None if shares is None else torch.cat(shares, 1)
                if part is not None:
                    yield done, part.numpy()
                done += count
                on_stage(f"decoding: {done} of {clip.frames} frames done")

    def _decode_sound(self, latents: Tensor) -> Tensor | None:
        """Latents [1, 128, l] -> samples float32 [n] on the host; None except in the first process."""
        place, size = self.processes, self.processes.clip.size
        sound = torch.empty(0)
        if place.clip.rank == size - 1:
            sound = _required(self.codecs.audio, "audio VAE").decode(latents)[0, 0, : self.samples].float().cpu()
        if place.rounds is None:
            return sound
        sounds = place.rounds.collected(sound, [(0,)] * (size - 1) + [(self.samples,)])
        return None if sounds is None else sounds[-1]

    def _encode_pictures(self, request: Request) -> dict[str, Tensor]:
        """What `Encoded.pictures` has of a request, on the host."""
        given, first, found = None, request.first_frame, {}
        if request.given is not None:
            given, (video, audio) = request.given.read(self.shape), request.given.kind
            if video != "none":
                volume = video_from_uint8(torch.from_numpy(given.pictures))[None]
                found["video"] = _required(self.codecs.video, "video VAE").encode(volume).float().cpu()
                if first is None and kept_frames(video, self.shape)[0]:
                    first = given.pictures[0]
            if audio != "none":
                sound = torch.from_numpy(given.audio)[None, None]
                found["audio"] = _required(self.codecs.audio, "audio VAE").encode(sound).float().cpu()
        return {"condition": self._encode_frames(request, first).cpu(), **found}

    def _encode_frames(self, request: Request, first: np.ndarray | None) -> Tensor:
        """Condition [1, 20, t, h, w]: the latents of [first frame, zeros, (last frame)], keyframes in their places, and
        their mask.
        """
        clip = self.shape
        volume = torch.zeros(1, 3, clip.frames, clip.height, clip.width)
        if first is None:
            first = np.full((clip.height, clip.width, 3), WHITE, np.uint8)
        for index, frame in ((0, first), *request.keyframes, (-1, request.last_frame)):
            if frame is not None:
                fitted = np.ascontiguousarray(crop_resize(frame, clip.height, clip.width))
                volume[0, :, index] = video_from_uint8(torch.from_numpy(fitted)[None])[:, 0]
        latents = _required(self.codecs.video, "video VAE").encode(volume)
        keyframes = [index for index, _ in request.keyframes]
        return first_frame_condition(latents, request.last_frame is not None, keyframes)


def _given_latents(latents: Tensor | None, positions: tuple[bool, ...], device: torch.device) -> GivenLatents | None:
    if latents is None:
        return None
    return GivenLatents(latents.to(device), positions, clean=all(positions))
