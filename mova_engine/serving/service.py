"""What the API knows of the models that are served: sizes that fit, defaults, limits. No torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from mova_engine.config.buckets import MULTIPLE
from mova_engine.config.model import ClipConfig
from mova_engine.errors import suggest
from mova_engine.inference.prompts.prompt_checks import TextLimit
from mova_engine.serving.api_errors import bad_field
from mova_engine.serving.api_keys import ApiKeys
from mova_engine.serving.video_job import VideoSettings

# Sides are multiples of a patch of the towers. Frames are a multiple of FRAME_STEP, and one.
SIDE, FRAME_STEP = MULTIPLE, 4
# Shapes that are offered beside the model's own, as far as they fit.
_SHAPES = ((16, 9), (9, 16), (4, 3), (3, 4), (1, 1))
# What MOVA's own clients call its sizes: 360 is no multiple of 16, and what is made has 352 lines.
_SIZE_NAMES = {(640, 360): (640, 352), (360, 640): (352, 640)}


class Enhanced(Protocol):
    """What a prompt's enhancement gives (`EnhancedPrompt`)."""

    def as_json(self) -> dict[str, Any]:
        """Its fields, `prompt` first of all."""
        ...


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model as clients see it.

    clip: its own clips. tokens: what its text encoder reads of a prompt; None: not known. most_tokens: of the video
    tower in a clip, which limits size and length; None: as many as its own clip has. steps, guidance: its defaults.
    text_scale: strength of guidance by default. calibrated: whether a planned step cache can be asked for.
    clip_seconds: predicted seconds of one clip of its own; None: not known.
    """

    name: str
    clip: ClipConfig
    steps: int
    guidance: str
    text_scale: float = 5.0
    adapters: tuple[str, ...] = ()
    tokens: TextLimit | None = None
    most_tokens: int | None = None
    calibrated: bool = False
    clip_seconds: float | None = None

    @property
    def room(self) -> int:
        """Tokens that a clip may have."""
        return self.most_tokens or self.clip.video_tokens

    @property
    def default_frames(self) -> int:
        """Frames of a clip of its own size where none are asked for: its own, or as many as fit."""
        return min(self.clip.frames, self.most_frames(self.clip.width, self.clip.height))

    @property
    def _where(self) -> str:
        """Where a clip is too large, in words: in devices whose memory is the limit."""
        return " in the memory of this server's device" if self.room < self.clip.video_tokens else ""

    def fits(self, width: int, height: int, frames: int) -> bool:
        """Whether a clip of these sides and frames is within the limit."""
        return replace(self.clip, width=width, height=height, frames=frames).video_tokens <= self.room

    def most_frames(self, width: int, height: int) -> int:
        """The longest clip of a size; 0: none fits."""
        latents = self.room // max(1, (width // SIDE) * (height // SIDE))
        return (latents - 1) * FRAME_STEP + 1 if latents else 0

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) that are offered: the model's own, turned, and of usual shapes with as many pixels."""
        own = self.clip.width, self.clip.height
        found = [own, own[::-1]]
        area = own[0] * own[1]
        for wide, high in _SHAPES:
            unit = math.sqrt(area / (wide * high))
            found.append((_below(wide * unit), _below(high * unit)))
        return [(w, h) for w, h in dict.fromkeys(found) if self.fits(w, h, self.default_frames)]

    def nearest_sizes(self, width: int, height: int, frames: int) -> list[tuple[int, int]]:
        """Up to three sizes of which `frames` can be made, those most like the wanted one first."""
        around = [(w, h) for w in _around(width) for h in _around(height)]
        fitting = [(w, h) for w, h in (*around, *self.sizes()) if self.fits(w, h, frames)]
        return sorted(dict.fromkeys(fitting), key=lambda size: _unlike(size, (width, height)))[:3]

    def checked_size(self, width: int, height: int, frames: int, param: str) -> tuple[int, int]:
        """The size that is made for a wanted one. frames: the fewest that will do. Raises ApiError, naming the nearest,
        for what cannot be made.
        """
        width, height = _SIZE_NAMES.get((width, height), (width, height))
        if width % SIDE == 0 and height % SIDE == 0 and width > 0 and height > 0 and self.fits(width, height, frames):
            return width, height
        near = ", ".join(f"{w}x{h}" for w, h in self.nearest_sizes(width, height, frames))
        why = f"it is too large for {frames} frames{self._where}"
        if width % SIDE or height % SIDE:
            why = "sides are multiples of 16"
        raise bad_field(param, f"{width}x{height} cannot be made ({why}); the nearest sizes are {near}")

    def checked_frames(self, width: int, height: int, frames: int, param: str) -> int:
        """`frames`, if a clip of this size can have them. Raises ApiError, naming the nearest, otherwise."""
        most = self.most_frames(width, height)
        if frames % FRAME_STEP == 1 and 0 < frames <= most:
            return frames
        nearest = min(most, max(1, (frames - 1) // FRAME_STEP * FRAME_STEP + 1))
        why = f"of {width}x{height} at most {most}{self._where}" if frames > most else f"they are {FRAME_STEP}n+1"
        raise bad_field(param, f"{frames} frames cannot be made ({why}); the nearest number is {nearest}")


def _below(side: float) -> int:
    """The largest side of whole patches that is not larger, one patch at least."""
    return max(SIDE, int(side) // SIDE * SIDE)


def _around(side: int) -> tuple[int, int]:
    below = _below(min(side, 1 << 14))
    return below, below + SIDE


def _unlike(size: tuple[int, int], wanted: tuple[int, int]) -> float:
    return sum(abs(math.log(have / max(1, want))) for have, want in zip(size, wanted, strict=True))


def frames_of_seconds(seconds: float, fps: float) -> int:
    """The largest 4n+1 frames that are no more than the seconds have, and one: 8 s of 24 fps are 193."""
    return max(0, int(round(seconds * fps, 6))) // FRAME_STEP * FRAME_STEP + 1


@dataclass(frozen=True, kw_only=True)
class ApiLimits:
    """What a request may ask for. image_bytes, video_bytes: of an uploaded file. pixels: of a picture as it is decoded.

    prompt_characters: beside the text encoder's own limit. seconds: of an extended clip. upload_s: for a request to
    arrive. readers: files that are decoded at the same time. streams, streams_each: open streams of events, of all
    clients and of each.
    """

    image_bytes: int = 32 << 20
    video_bytes: int = 256 << 20
    pixels: int = 64_000_000
    prompt_characters: int = 20_000
    steps: int = 200
    fps: float = 120.0
    seconds: float = 60.0
    upload_s: float = 300.0
    readers: int = 2
    streams: int = 256
    streams_each: int = 64


def _no_limit(model: ServedModel) -> int | None:
    return None


def _nothing_predicted(model: ServedModel, settings: VideoSettings) -> float | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Service:
    """What is served. models: the first is the default. keys: None: whoever reaches the server may use it. local: it
    listens on this machine alone. allow_fetch: pictures are fetched from https addresses.

    enhance: who rewrites prompts, "none" without. enhancer: prompt and first frame to what it made of them.
    predict: seconds of a clip's work, None where that is not known. room: tokens that a clip of a model may have where
    it is made, None without a limit. ready: why no clips can be made now, None if they can.
    """

    models: tuple[ServedModel, ...]
    keys: ApiKeys | None = None
    local: bool = True
    allow_fetch: bool = False
    limits: ApiLimits = field(default_factory=ApiLimits)
    enhance: str = "none"
    enhancer: Callable[[str, np.ndarray | None], Enhanced] | None = None
    predict: Callable[[ServedModel, VideoSettings], float | None] = _nothing_predicted
    room: Callable[[ServedModel], int | None] = _no_limit
    ready: Callable[[], str | None] = lambda: None
    created_at: int = 0

    def offered(self) -> tuple[ServedModel, ...]:
        """The models with the room that their clips have now."""
        rooms = [self.room(model) for model in self.models]
        return tuple(
            model if room is None else replace(model, most_tokens=min(room, model.room))
            for model, room in zip(self.models, rooms, strict=True)
        )

    def model(self, name: str | None) -> ServedModel:
        """A model by name; None: the default. Raises ApiError with the nearest name."""
        models = self.offered()
        known: Mapping[str, ServedModel] = {model.name: model for model in models}
        if name is None:
            return models[0]
        if name not in known:
            near = suggest(name, known)
            words = f"unknown model '{name[:80]}'.{near} Known: {', '.join(known)}"
            raise bad_field("model", words, "model_not_found")
        return known[name]

    def model_object(self, model: ServedModel) -> dict[str, Any]:
        """A model as /v1/models lists it."""
        clip, limits = model.clip, self.limits
        most = model.most_frames(clip.width, clip.height)
        about = {
            "sizes": [{"width": width, "height": height} for width, height in model.sizes()],
            "frames": list(range(1, most + 1, FRAME_STEP)),
            "default_frames": model.default_frames,
            "fps": clip.fps,
            "steps": model.steps,
            "most_steps": limits.steps,
            "guidance": model.guidance,
            "guidance_scale": model.text_scale,
            "adapters": [{"name": name} for name in model.adapters],
            "enhance": self.enhance,
            "text_tokens": None if model.tokens is None else model.tokens.most,
            "clip_seconds": model.clip_seconds,
            "limits": {"prompt_characters": limits.prompt_characters, "upload_bytes": limits.image_bytes},
        }
        return {
            "id": model.name,
            "object": "model",
            "created": self.created_at,
            "owned_by": "mova_engine",
            "x_mova": about,
        }
