"""Encoding of prompts and frames before denoising, decoding of latents to pictures and sound after it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mova_engine.checkpoints.folder import Codecs
from mova_engine.codecs import video_from_uint8, video_to_uint8
from mova_engine.config.model import ClipConfig
from mova_engine.config.stages import DECODE_AUDIO, DECODE_VIDEO, ENCODE_FRAMES, ENCODE_TEXT
from mova_engine.data.media.decode import Clip
from mova_engine.data.media.resize import crop_resize
from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import Conditions, Latents
from mova_engine.inference.requests import Request
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
    process encoded them. pictures: the condition [1, 20, t, h, w] of each clip; empty if another process encoded them.
    """

    text: dict[str, Tensor] | None = None
    pictures: list[Tensor] = field(default_factory=list)


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
            encoded: dict[tuple[int, int], Tensor] = {}
            with stage(self.residency, ENCODE_FRAMES):
                for inputs, requests in zip(found, batches, strict=True):
                    for request in requests:
                        key = id(request.first_frame), id(request.last_frame)
                        if key not in encoded:
                            encoded[key] = self._encode_frames(request).cpu()
                        inputs.pictures.append(encoded[key])
        return found

    def gather(self, inputs: Encoded, device: torch.device) -> Conditions:
        """Share what the processes that make the clips together have encoded; returns all of it, on `device`."""
        clip, rounds = self.processes.clip, self.processes.rounds
        features = inputs.text
        pictures = {"condition": torch.cat(inputs.pictures)} if clip.rank == clip.size - 1 else None
        if rounds is not None:
            features, pictures = rounds.broadcast(features, 0), rounds.broadcast(pictures, clip.size - 1)
        features, pictures = _required(features, "text features"), _required(pictures, "condition")
        text, empty = features["text"].to(device), features["empty"].to(device)
        return Conditions(pictures["condition"].to(device), text, empty.expand_as(text))

    def decode(self, latents: Latents, on_stage: Callable[[str], object]) -> Iterator[Clip | None]:
        """Decode the latents of a batch: the pictures of all clips, one clip at a time, then their sound; yield each
        clip.

        The processes that made the clips together each decode some rows of the pictures, and the last one decodes the
        sound. The first process gets the clips, the others get None. on_stage: called with the name of the stage.
        """
        with stage(self.residency, DECODE_VIDEO):
            pictures = [self._decode_pictures(video, on_stage) for video in latents.video.split(1)]
        with stage(self.residency, DECODE_AUDIO):
            sounds = [self._decode_sound(audio) for audio in latents.audio.split(1)]
        for frames, sound in zip(pictures, sounds, strict=True):
            yield None if frames is None or sound is None else Clip(frames.numpy(), sound.numpy())

    def _decode_pictures(self, latents: Tensor, on_stage: Callable[[str], object]) -> Tensor | None:
        """Latents [1, 16, t, h, w] -> frames uint8 [f, height, width, 3] on the host; None except in the first
        process.
        """
        on_stage("decoding")
        place, clip = self.processes, self.shape
        rows = place.rows(latents.shape[-2])
        pictures = torch.empty(clip.frames, 0, clip.width, 3, dtype=torch.uint8)
        if rows.take(latents).shape[-2]:
            # As they are made: a device holds a few frames, not the clip.
            parts = _required(self.codecs.video, "video VAE").decode_frames(latents, rows)
            pictures = torch.cat([video_to_uint8(frames[0]).cpu() for frames in parts])
        if place.rounds is None:
            return pictures
        height = clip.height // latents.shape[-2]
        parts = place.rounds.collected(pictures, [(clip.frames, height * own, clip.width, 3) for own in rows.lengths])
        return None if parts is None else torch.cat(parts, 1)

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

    def _encode_frames(self, request: Request) -> Tensor:
        """Condition [1, 20, t, h, w]: the latents of [first frame, zeros, (last frame)] and their mask."""
        clip = self.shape
        volume = torch.zeros(1, 3, clip.frames, clip.height, clip.width)
        first = request.first_frame
        if first is None:
            first = np.full((clip.height, clip.width, 3), WHITE, np.uint8)
        for index, frame in ((0, first), (-1, request.last_frame)):
            if frame is not None:
                fitted = np.ascontiguousarray(crop_resize(frame, clip.height, clip.width))
                volume[0, :, index] = video_from_uint8(torch.from_numpy(fitted)[None])[:, 0]
        latents = _required(self.codecs.video, "video VAE").encode(volume)
        return first_frame_condition(latents, last_frame=request.last_frame is not None)
