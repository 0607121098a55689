"""From words and a first frame to a clip: encode the conditions, denoise, decode."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mova_engine.checkpoints.folder import Codecs
from mova_engine.codecs import video_from_uint8, video_to_uint8
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.data.media.decode import Clip
from mova_engine.data.media.resize import crop_resize
from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import Conditions, Latents, LoopOptions, Step, denoise, draw_noise
from mova_engine.models.mova import Mova

WHITE = 255
# What MOVA's own inference scripts steer away from unless told otherwise. The words are the Wan project's (Wan 2.1,
# Apache-2.0): garish, overexposed, static, blurred, subtitles, low quality, JPEG artefacts, deformed hands and faces.
REFERENCE_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
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


def default_settings(config: MovaConfig) -> SampleSettings:
    """What a model is sampled with unless told otherwise, as its folder states: see `train.model.model_config`."""
    return SampleSettings(config.sampling.steps, Guidance(config.sampling.guidance))


def own_codecs(processes: Processes) -> tuple[str, ...]:
    """Names of the codecs that this process needs: of those that make clips together, the first encodes words, all
    decode pictures, the last encodes pictures and decodes sound.
    """
    rank, size = processes.clip.rank, processes.clip.size
    return ("video", *(("text",) if rank == 0 else ()), *(("audio",) if rank == size - 1 else ()))


@dataclass
class Pipeline:
    """A model with everything that it speaks through. The clips' shape is `mova.config.clip`'s, or `clip`'s.

    schedule, prediction, options.clean_first_frame and options.bridge must be those of the training. processes: each of
    them has a pipeline, with the codecs that `own_codecs` names. sharded: they hold parts of the weights each. device:
    where the towers compute; None: where they are.
    """

    mova: Mova
    codecs: Codecs
    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = field(default_factory=Prediction)
    options: LoopOptions = field(default_factory=LoopOptions)
    clip: ClipConfig | None = None
    processes: Processes = field(default_factory=Processes)
    sharded: bool = False
    device: torch.device | None = None

    @property
    def shape(self) -> ClipConfig:
        """The shape of the clips made."""
        return self.clip or self.mova.config.clip

    @property
    def samples(self) -> int:
        """Samples of a clip's sound: whole latents outlast the pictures."""
        return round(self.shape.duration * self.shape.sample_rate)

    def generate(
        self,
        requests: Sequence[Request],
        settings: SampleSettings,
        *,
        batch: int = 1,
        on_step: Callable[[Step], None] | None = None,
        on_stage: Callable[[str], object] = lambda _: None,
    ) -> Iterator[Clip | None]:
        """Yield a clip per request, in order, as each batch of `batch` is done: pictures and sound of equal duration.

        A clip does not depend on its neighbours in the batch. on_step is told of every denoising step, on_stage of what
        comes next, in words. Of several processes, which all are given the same requests, the first gets the clips; the
        others yield None for each. Their data-parallel groups take a batch each at a time.
        Raises MovaError when latents come out not finite.
        """
        if batch < 1:
            raise MovaError(f"batch must be at least 1, got {batch}")
        batches = [requests[start : start + batch] for start in range(0, len(requests), batch)]
        groups = self.processes.shape.data_parallel
        for start in range(0, len(batches), groups):
            turn = batches[start : start + groups]
            yield from self._turn(turn, settings, on_step, on_stage)

    def _turn(
        self,
        turn: Sequence[Sequence[Request]],
        settings: SampleSettings,
        on_step: Callable[[Step], None] | None,
        on_stage: Callable[[str], object],
    ) -> Iterator[Clip | None]:
        """Make one batch in each data-parallel group; the last turn may have too few for all of them."""
        place = self.processes
        own = turn[place.data_rank] if place.data_rank < len(turn) else ()
        made: Iterator[Clip | None] = iter(())
        # Shared weights are gathered from everybody: whose clips are all done helps with another's.
        if own or self.sharded:
            latents = self._denoise(own or turn[-1], settings, on_step, on_stage)
            # One at a time: a pretrained decoder needs far more memory than the towers.
            pairs = list(zip(latents.video.split(1), latents.audio.split(1), strict=True)) if own else []
            made = (self.decode(*pair, on_stage) for pair in pairs)
        if place.is_first:
            yield from made
            on_stage("collecting clips of other groups")
            for group, requests in enumerate(turn[1:], 1):
                for _ in requests:
                    yield self._received(group)
            return
        for clip in made:
            if clip is not None:
                place.send_to_first(torch.from_numpy(clip.video), torch.from_numpy(clip.audio))
        yield from (None for requests in turn for _ in requests)

    def _received(self, group: int) -> Clip:
        clip = self.shape
        pictures = self.processes.received(group, (clip.frames, clip.height, clip.width, 3), torch.uint8)
        return Clip(pictures.numpy(), self.processes.received(group, (self.samples,), torch.float32).numpy())

    def _denoise(
        self,
        requests: Sequence[Request],
        settings: SampleSettings,
        on_step: Callable[[Step], None] | None,
        on_stage: Callable[[str], object],
    ) -> Latents:
        # The tower in use during sampling: with offload the experts move, these stay.
        device = self.device or self.mova.audio_dit.head.head.weight.device
        on_stage("encoding words and first frames")
        conditions = self.conditions(requests, settings.negative_prompt, device)

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
        )

    def conditions(self, requests: Sequence[Request], negative_prompt: str, device: torch.device) -> Conditions:
        """Encode what a batch of clips is to show; tensors on `device`. Processes that make the clips together encode
        once: the first of them the words, the last one the pictures.
        """
        clip, rounds = self.processes.clip, self.processes.rounds
        words = self._encode_texts(requests, negative_prompt) if clip.rank == 0 else None
        pictures = {"condition": self._encode_pictures(requests)} if clip.rank == clip.size - 1 else None
        if rounds is not None:
            words, pictures = rounds.broadcast(words, 0), rounds.broadcast(pictures, clip.size - 1)
        text, empty = words["text"].to(device), words["empty"].to(device)
        return Conditions(pictures["condition"].to(device), text, empty.expand_as(text))

    def _encode_texts(self, requests: Sequence[Request], negative_prompt: str) -> dict[str, Tensor]:
        encode = self.codecs.text.encode
        return {"text": encode([request.caption for request in requests]), "empty": encode([negative_prompt])}

    def _encode_pictures(self, requests: Sequence[Request]) -> Tensor:
        encoded: dict[tuple[int, int], Tensor] = {}
        for request in requests:
            key = id(request.first_frame), id(request.last_frame)
            if key not in encoded:
                encoded[key] = self._encode_frames(request)
        return torch.cat([encoded[id(request.first_frame), id(request.last_frame)] for request in requests])

    def decode(self, video: Tensor, audio: Tensor, on_stage: Callable[[str], object] = lambda _: None) -> Clip | None:
        """Latents [1, 16, t, h, w] and [1, 128, l] of one clip -> its pictures and sound.

        Processes that made it together decode rows of its pictures each, the last one its sound; the first gets the
        clip, the others None.
        """
        on_stage("decoding")
        place, clip, size = self.processes, self.shape, self.processes.clip.size
        rows = place.rows(video.shape[-2])
        pictures = torch.empty(clip.frames, 0, clip.width, 3, dtype=torch.uint8)
        if rows.take(video).shape[-2]:
            pictures = video_to_uint8(self.codecs.video.decode(video, rows)[0]).cpu()
        sound = torch.empty(0)
        if place.clip.rank == size - 1:
            sound = self.codecs.audio.decode(audio)[0, 0, : self.samples].float().cpu()
        if place.rounds is not None:
            height = clip.height // video.shape[-2]
            shapes = [(clip.frames, height * own, clip.width, 3) for own in rows.lengths]
            parts = place.rounds.collected(pictures, shapes)
            sounds = place.rounds.collected(sound, [(0,)] * (size - 1) + [(self.samples,)])
            if parts is None:
                return None
            pictures, sound = torch.cat(parts, 1), sounds[-1]
        return Clip(pictures.numpy(), sound.numpy())

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
