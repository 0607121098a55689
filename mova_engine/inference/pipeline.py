"""From words and a first frame to a clip: encode the conditions, denoise, decode."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from mova_engine.backend import Backend, default_backend, get_backend
from mova_engine.checkpoints.folder import Codecs
from mova_engine.checkpoints.locate import find_adapters, open_model
from mova_engine.codecs import video_from_uint8, video_to_uint8
from mova_engine.config.clip import ClipSettings
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.data.media.decode import Clip
from mova_engine.data.media.resize import crop_resize
from mova_engine.data.text import flaw
from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import Conditions, Latents, LoopOptions, Step, denoise, draw_noise
from mova_engine.inference.generated_clip import GeneratedClip
from mova_engine.inference.loading import load_model
from mova_engine.inference.requests import Request, read_frame
from mova_engine.memory.codec_parts import AUDIO_VAE, TEXT_ENCODER, VIDEO_VAE
from mova_engine.memory.residency import Residency, stage
from mova_engine.models.mova import Mova

WHITE = 255
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


@dataclass
class _Encoded:
    """What one process encoded of a batch, on the host: words (text [b, n, d], empty [1, n, d]) or None; a condition
    [1, 20, t, h, w] for each clip, or none.
    """

    words: dict[str, Tensor] | None = None
    pictures: list[Tensor] = field(default_factory=list)


@dataclass
class Pipeline:
    """A model with everything that it speaks through. The clips' shape is `mova.config.clip`'s, or `clip`'s.

    schedule, prediction, options.clean_first_frame and options.bridge must be those of the training. processes: each of
    them has a pipeline, with the codecs that `loading.own_codecs` names. sharded: they hold parts of the weights each.
    device: where the towers compute; None: where they are. residency: brings the codecs, and experts that are its
    parts, to the device for their stages; None: they are where they compute.
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
    residency: Residency | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        *,
        clip: ClipSettings | None = None,
        memory: MemoryConfig | None = None,
        lora: str | Path | None = None,
    ) -> "Pipeline":
        """The pipeline of a model folder, a training run (its newest checkpoint) or a Hugging Face cache folder.

        device: "cpu", "cuda" or "npu"; None: the first of npu, cuda, cpu that works. dtype: what the towers compute in;
        None: as stored. clip: sizes other than the model's own, `ClipSettings(height=352, width=640)`. memory: where
        weights wait, `MemoryConfig(expert="host")`; None: all on the device.
        lora: adapters to add, a LoRA run, its checkpoint or a file.
        Raises MovaError for whatever is missing or damaged.
        """
        backend = get_backend(device) if device else default_backend()
        found, config = open_model(folder, clip or ClipSettings())
        lora = None if lora is None else find_adapters(lora)
        return load_pipeline(found, backend, dtype=dtype, clip=config.clip, memory=memory, lora=lora, config=config)

    @overload
    def __call__(self, prompt: str, image: Picture = None, seed: int = 0, **options: Any) -> GeneratedClip: ...

    @overload
    def __call__(
        self, prompt: Sequence[str], image: Picture = None, seed: int = 0, **options: Any
    ) -> list[GeneratedClip]: ...

    def __call__(
        self,
        prompt: str | Sequence[str],
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
            GeneratedClip(
                clip.video, clip.audio[None], self.shape.fps, self.shape.sample_rate, request.caption, request.seed
            )
            for request, clip in zip(requests, self.generate(requests, settings, batch=batch), strict=True)
        ]
        return clips[0] if isinstance(prompt, str) else clips

    def _frame(self, picture: Picture) -> np.ndarray | None:
        return read_frame(picture, self.shape) if isinstance(picture, str | Path) else picture

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
        turns = [batches[start : start + groups] for start in range(0, len(batches), groups)]
        ahead = max(1, ENCODED_AHEAD // batch)
        for start in range(0, len(turns), ahead):
            some = turns[start : start + ahead]
            on_stage("encoding words and first frames")
            encoded = self._encode([self._part(turn) for turn in some], settings.negative_prompt)
            for turn, inputs in zip(some, encoded, strict=True):
                yield from self._turn(turn, inputs, settings, on_step, on_stage)

    def _part(self, turn: Sequence[Sequence[Request]]) -> Sequence[Request]:
        """The batch of a turn that this process works on, empty where there is none; the last turn may have too few.

        Shared weights are gathered from everybody: whose clips are all done helps with another's.
        """
        rank = self.processes.data_rank
        return turn[rank] if rank < len(turn) else turn[-1] if self.sharded else ()

    def _turn(
        self,
        turn: Sequence[Sequence[Request]],
        inputs: _Encoded,
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
                made = self._decode_each(latents, on_stage)
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

    def _decode_each(self, latents: Latents, on_stage: Callable[[str], object]) -> Iterator[Clip | None]:
        """Clips one at a time: a pretrained decoder needs far more memory than the towers."""
        with stage(self.residency, VIDEO_VAE, AUDIO_VAE):
            for pair in zip(latents.video.split(1), latents.audio.split(1), strict=True):
                yield self.decode(*pair, on_stage)

    def _denoise(
        self,
        requests: Sequence[Request],
        inputs: _Encoded,
        settings: SampleSettings,
        on_step: Callable[[Step], None] | None,
        on_stage: Callable[[str], object],
    ) -> Latents:
        # The tower in use during sampling: where experts wait on the host they move, these stay.
        device = self.device or self.mova.audio_dit.head.head.weight.device
        conditions = self._together(inputs, device)

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
        )

    def conditions(self, requests: Sequence[Request], negative_prompt: str, device: torch.device) -> Conditions:
        """Encode what a batch of clips is to show; tensors on `device`. Processes that make the clips together encode
        once: the first of them the words, the last one the pictures.
        """
        (inputs,) = self._encode([requests], negative_prompt)
        return self._together(inputs, device)

    def _encode(self, batches: Sequence[Sequence[Request]], negative_prompt: str) -> list[_Encoded]:
        """What this process encodes of each batch, on the host: words of all batches, then pictures of all of them."""
        clip = self.processes.clip
        found = [_Encoded() for _ in batches]
        if clip.rank == 0 and any(batches):
            with stage(self.residency, TEXT_ENCODER):
                empty = self.codecs.text.encode([negative_prompt]).cpu()
                for inputs, requests in zip(found, batches, strict=True):
                    if requests:
                        text = self.codecs.text.encode([request.caption for request in requests]).cpu()
                        inputs.words = {"text": text, "empty": empty}
        if clip.rank == clip.size - 1 and any(batches):
            encoded: dict[tuple[int, int], Tensor] = {}
            with stage(self.residency, VIDEO_VAE):
                for inputs, requests in zip(found, batches, strict=True):
                    for request in requests:
                        key = id(request.first_frame), id(request.last_frame)
                        if key not in encoded:
                            encoded[key] = self._encode_frames(request).cpu()
                        inputs.pictures.append(encoded[key])
        return found

    def _together(self, inputs: _Encoded, device: torch.device) -> Conditions:
        """What the processes that make the clips together have encoded, on the device of each."""
        clip, rounds = self.processes.clip, self.processes.rounds
        words = inputs.words
        pictures = {"condition": torch.cat(inputs.pictures)} if clip.rank == clip.size - 1 else None
        if rounds is not None:
            words, pictures = rounds.broadcast(words, 0), rounds.broadcast(pictures, clip.size - 1)
        text, empty = words["text"].to(device), words["empty"].to(device)
        return Conditions(pictures["condition"].to(device), text, empty.expand_as(text))

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


def load_pipeline(folder: str | Path, backend: Backend, **options: Any) -> Pipeline:
    """The pipeline of a model folder on the backend's device; options and errors are those of `load_model`."""
    return Pipeline(**vars(load_model(folder, backend, **options)))
