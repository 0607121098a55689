"""From words and a first frame to a clip: encode the conditions, denoise, decode."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mova_engine.config import ClipConfig, MovaConfig
from mova_engine.data.decode import Clip
from mova_engine.data.transform import crop_resize
from mova_engine.diffusion.condition import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError
from mova_engine.models.checkpoint import Codecs
from mova_engine.models.codecs import video_from_uint8, video_to_uint8
from mova_engine.models.mova import Mova
from mova_engine.sample.sampler import Conditions, LoopOptions, Step, denoise, draw_noise

WHITE = 255
# torch.Generator takes 64 bits.
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """One clip to make. first_frame, last_frame: uint8 [h, w, 3], cropped and resized as clips are.

    Without a first frame the model is given a white one, its sign for "text only". The seed alone decides the noise.
    """

    caption: str
    seed: int = 0
    first_frame: np.ndarray | None = None
    last_frame: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise MovaError(f"seed must lie between 0 and {MAX_SEED}, got {self.seed}")


@dataclass(frozen=True)
class SampleSettings:
    """Euler steps, guidance, and the words that guidance steers away from."""

    steps: int = 50
    guidance: Guidance = field(default_factory=Guidance)
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise MovaError(f"steps must be at least 1, got {self.steps}")


RELEASED_SETTINGS = SampleSettings()
# By model: nano is trained without text dropout, which guidance by text needs, and more steps bring it nothing.
SETTINGS = {"nano": SampleSettings(steps=16, guidance=Guidance("none"))}


def default_settings(config: MovaConfig) -> SampleSettings:
    """What a model is sampled with unless told otherwise, by its name: 50 steps and guidance by text, or its own."""
    return SETTINGS.get(config.name, RELEASED_SETTINGS)


@dataclass
class Pipeline:
    """A model with everything that it speaks through. The clips' shape is `mova.config.clip`'s, or `clip`'s.

    schedule, prediction, options.clean_first_frame and options.bridge must be those of the training.
    """

    mova: Mova
    codecs: Codecs
    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = field(default_factory=Prediction)
    options: LoopOptions = field(default_factory=LoopOptions)
    clip: ClipConfig | None = None

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
        on_step: Callable[[Step], None] | None = None,
    ) -> Iterator[Clip]:
        """Yield a clip per request, in order, as each batch of `batch` is done: pictures and sound of equal duration.

        A clip does not depend on its neighbours in the batch. on_step is told of every denoising step.
        Raises MovaError when latents come out not finite.
        """
        if batch < 1:
            raise MovaError(f"batch must be at least 1, got {batch}")
        steps = self.schedule.inference(settings.steps)
        # The tower in use during sampling: with offload the experts move, these stay.
        device = self.mova.audio_dit.head.head.weight.device
        for group in (requests[start : start + batch] for start in range(0, len(requests), batch)):
            noise = draw_noise(self.mova.config, [request.seed for request in group], self.shape, device)
            latents = denoise(
                self.mova,
                self.conditions(group, settings.negative_prompt, device),
                noise,
                steps,
                settings.guidance,
                self.prediction,
                fps=self.shape.fps,
                options=self.options,
                on_step=on_step,
            )
            # One at a time: a pretrained decoder needs far more memory than the towers.
            for video, audio in zip(latents.video.split(1), latents.audio.split(1), strict=True):
                yield self.decode(video, audio)

    def conditions(self, requests: Sequence[Request], negative_prompt: str, device: torch.device) -> Conditions:
        """Encode what a batch of clips is to show; tensors on `device`."""
        encoded: dict[tuple[int, int], Tensor] = {}
        for request in requests:
            key = id(request.first_frame), id(request.last_frame)
            if key not in encoded:
                encoded[key] = self._encode_frames(request)
        condition = torch.cat([encoded[id(request.first_frame), id(request.last_frame)] for request in requests])
        text = self.codecs.text.encode([request.caption for request in requests]).to(device)
        empty = self.codecs.text.encode([negative_prompt]).to(device)
        return Conditions(condition.to(device), text, empty.expand_as(text))

    def decode(self, video: Tensor, audio: Tensor) -> Clip:
        """Latents [1, 16, t, h, w] and [1, 128, l] of one clip -> its pictures and sound."""
        pictures = video_to_uint8(self.codecs.video.decode(video)[0])
        # Whole latents outlast the pictures.
        samples = round(self.shape.duration * self.shape.sample_rate)
        sound = self.codecs.audio.decode(audio)[0, 0, :samples].float()
        return Clip(pictures.cpu().numpy(), sound.cpu().numpy())

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
        return first_frame_condition(self.codecs.video.encode(volume), last_frame=request.last_frame is not None)
