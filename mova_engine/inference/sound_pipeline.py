"""Sound from text, from Python: a model's audio tower with its codec and text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import torch

from mova_engine.backend import default_backend, get_backend
from mova_engine.checkpoints.locate import open_model
from mova_engine.config.adapter_spec import parse_adapter
from mova_engine.config.clip import ClipSettings
from mova_engine.config.memory import MemoryConfig, memory_of_word
from mova_engine.data.media.write_sound import encode_sound_file
from mova_engine.diffusion.guidance import Guidance
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic
from mova_engine.inference.audio_alone import generate_sound
from mova_engine.inference.pipeline import Pipeline, load_pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import default_settings

# Sounds that are made at once unless the caller says how many.
MOST_SOUNDS = 16


@dataclass(frozen=True)
class GeneratedSound:
    """A generated sound. audio: float32 [channels, samples] at `sample_rate` Hz. prompt, seed: of its request."""

    audio: np.ndarray
    sample_rate: int
    prompt: str
    seed: int

    def save(self, path: str | Path) -> Path:
        """Write a sound file of the format that the suffix names (.wav, .flac, .ogg, .opus, .mp3, .m4a) and return its
        path. Raises MovaError for another suffix, and if the file exists or cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise MovaError(f"{path} is there already: name another file")
        write_atomic(path, encode_sound_file(path, self.audio[0], self.sample_rate))
        return path


class SoundPipeline:
    """Makes sound from prompts, with the audio tower alone: no pictures, no video tower, no bridge."""

    def __init__(self, pipeline: Pipeline) -> None:
        """pipeline: of a whole model, or of a checkpoint of the audio tower alone."""
        self.pipeline = pipeline

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        *,
        clip: ClipSettings | None = None,
        memory: MemoryConfig | str | None = None,
        lora: str | Path | Sequence[str | Path] | None = None,
    ) -> "SoundPipeline":
        """Open a model folder or a training run, also of the audio tower alone (`--task audio`).

        The arguments are those of `Pipeline.from_pretrained`; clip: its frames and fps say how long a sound is. memory:
        settings or a word but "auto". Raises MovaError for missing or damaged files.

            from mova_engine import SoundPipeline

            pipeline = SoundPipeline.from_pretrained("runs/audio-nano")
            sound = pipeline("two high bells starting at once", seed=0)
            sound.save("bells.wav")
        """
        backend = get_backend(device) if device else default_backend()
        found, config = open_model(folder, clip or ClipSettings(), sound=True)
        given = [] if lora is None else [lora] if isinstance(lora, str | Path) else lora
        settings = memory_of_word(memory) if isinstance(memory, str) else memory or MemoryConfig()
        settings.check_decided()
        adapters = [parse_adapter(str(each)) for each in given]
        options = {"dtype": dtype, "clip": config.clip, "memory": settings, "lora": adapters, "config": config}
        return cls(load_pipeline(found, backend, **options))

    @overload
    def __call__(
        self,
        prompt: str,
        seed: int = 0,
        *,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
    ) -> GeneratedSound: ...

    @overload
    def __call__(
        self,
        prompt: list[str] | tuple[str, ...],
        seed: int = 0,
        *,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
    ) -> list[GeneratedSound]: ...

    def __call__(
        self,
        prompt: str | list[str] | tuple[str, ...],
        seed: int = 0,
        *,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
    ) -> GeneratedSound | list[GeneratedSound]:
        """Make a sound from a prompt, or a list of sounds from several. Sound i has the seed `seed + i`.

        steps, guidance: None: the model's own; guidance by the bridge is refused. batch: sounds that are denoised at
        once. Raises MovaError as `generate_sound` does.
        """
        settings = default_settings(self.pipeline.mova.config)
        stated = {"steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
        settings = replace(settings, **{name: value for name, value in stated.items() if value is not None})
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        requests = [Request(text, seed + number) for number, text in enumerate(prompts)]
        made = generate_sound(self.pipeline, requests, settings, batch=batch or min(MOST_SOUNDS, max(1, len(requests))))
        rate = self.pipeline.shape.sample_rate
        sounds = [
            GeneratedSound(sound[None], rate, request.caption, request.seed)
            for request, sound in zip(requests, made, strict=True)
        ]
        return sounds[0] if isinstance(prompt, str) else sounds
