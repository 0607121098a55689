"""The sampling pipeline: encode a prompt and a first frame, denoise, decode to a clip."""

# Some of torch's functions are not fully typed. Arguments are checked at run time whatever their annotation.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnnecessaryIsInstance=false

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from mova_engine.backend import Backend, default_backend, get_backend
from mova_engine.checkpoints.folder import Codecs, mova_config_from_folder
from mova_engine.checkpoints.locate import open_model
from mova_engine.config.adapter_spec import AdapterSpec, parse_adapter
from mova_engine.config.byte_sizes import check_bytes
from mova_engine.config.clip import ClipSettings
from mova_engine.config.memory import MemoryConfig, memory_of_word
from mova_engine.config.model import COMPONENTS, ClipConfig, MovaConfig
from mova_engine.config.stages import CODEC_PARTS
from mova_engine.data.media.decode import Clip
from mova_engine.diffusion.guidance import Guidance
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.clip_generator import MOST_CLIPS, NO_CODECS, ClipGenerator, default_batch
from mova_engine.inference.denoising import LoopOptions
from mova_engine.inference.generated_clip import GeneratedClip
from mova_engine.inference.given_clip import GivenClip
from mova_engine.inference.loading import open_parts, trained
from mova_engine.inference.requests import OfClips, Request, read_frame, strengths_of
from mova_engine.inference.sample_settings import default_settings
from mova_engine.inference.sampling_memory import choose_for_sampling
from mova_engine.models.mova import Mova

# A file, or pixels uint8 [h, w, 3].
Picture = str | Path | np.ndarray | None


@dataclass
class Pipeline(ClipGenerator):
    """A model with its codecs and text encoder, which makes clips from prompts."""

    def __post_init__(self) -> None:
        given = type(self.mova).__name__
        if not isinstance(self.mova, Mova):
            raise MovaError(
                f"Pipeline takes a Mova, got {given}: Pipeline.from_pretrained(FOLDER) loads a model folder"
            )
        if not isinstance(self.codecs, Codecs) or self.codecs == NO_CODECS:
            raise MovaError("Pipeline takes the model's Codecs too: Pipeline.from_pretrained(FOLDER) loads all of it")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        *,
        clip: ClipSettings | None = None,
        memory: MemoryConfig | str | None = None,
        vram: str | None = None,
        ram: str | None = None,
        lora: str | Path | Sequence[str | Path] | None = None,
    ) -> "Pipeline":
        """Open a model folder, a training run (its newest checkpoint) or a Hugging Face cache folder.

        device: "cpu", "cuda" or "npu"; None: the first of npu, cuda, cpu that works. dtype: compute dtype of the
        towers, such as `torch.bfloat16`; None: as stored. clip: clip sizes other than the model's own, such as
        `ClipSettings(height=352, width=640)`.
        lora: one or several adapters to add: a LoRA run, its checkpoint, or a file or folder of any dialect; as text
        also with the layers that it adapts and a strength, "style.safetensors:high:0.8".
        memory: where weights are while they are not used, `mova_engine.MemoryConfig(idle=...)`. "host" (default): in
        host memory, so that the device holds only the parts of one stage. "files": nowhere, they are read again.
        "device": on the device. `expert="host"`: only one video expert is on the device at a time. `weights="host"` or
        "files": layers are streamed to the device one by one, so that it holds two of them at a time. Or a word for
        several settings, `mova sample --memory`: "resident", "expert", "stream", "disk", or "auto": what the planner
        chooses for this device, by the model's own settings of sampling. vram, ram: the most of the device's and of the
        host's memory to use, such as "12GB"; None: what is free. `pipeline.chosen.words()` says what was chosen.
        Weights are read when the first call needs them. Later calls read no file again, except with idle="files".
        Raises MovaError for missing or damaged files, and for arguments of a wrong type.

            from mova_engine import Pipeline

            pipeline = Pipeline.from_pretrained("runs/nano")
            clip = pipeline("a red ball bounces", image="first.png", seed=0)
            clip.save("ball.mp4")
        """
        for name, value, kinds in (
            ("folder", folder, (str, Path)),
            ("device", device, (str, type(None))),
            ("dtype", dtype, (torch.dtype, type(None))),
            ("clip", clip, (ClipSettings, type(None))),
            ("memory", memory, (MemoryConfig, str, type(None))),
            ("vram", vram, (str, type(None))),
            ("ram", ram, (str, type(None))),
            ("lora", lora, (str, Path, list, tuple, type(None))),
        ):
            if not isinstance(value, kinds):
                wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise MovaError(f"Pipeline.from_pretrained: {name} must be {wanted}, got {value!r}")
        backend = get_backend(device) if device else default_backend()
        found, config = open_model(folder, clip or ClipSettings())
        given = [] if lora is None else [lora] if isinstance(lora, str | Path) else lora
        adapters = [parse_adapter(str(each)) for each in given]
        settings = memory_of_word(memory) if isinstance(memory, str) else memory or MemoryConfig()
        check_bytes(vram=vram, ram=ram)
        planned = choose_for_sampling(
            settings,
            found,
            config,
            backend,
            dtype=dtype,
            evaluations=Guidance(config.sampling.guidance).evaluations,
            batch=default_batch(config.clip, MOST_CLIPS),
            vram=vram,
            ram=ram,
            lora=adapters,
        )
        options: dict[str, Any] = {"dtype": dtype, "clip": config.clip, "lora": adapters, "config": config}
        made = load_pipeline(found, backend, memory=settings if planned is None else planned.config, **options)
        made.chosen = planned
        if planned is not None and planned.sequential:
            made.options = replace(made.options, batch_guidance=False)
        return made

    @overload
    def __call__(
        self,
        prompt: str,
        image: Picture = None,
        seed: int = 0,
        *,
        last_image: Picture = None,
        given: GivenClip | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
        adapters: OfClips = None,
    ) -> GeneratedClip: ...

    @overload
    def __call__(
        self,
        prompt: list[str] | tuple[str, ...],
        image: Picture = None,
        seed: int = 0,
        *,
        last_image: Picture = None,
        given: GivenClip | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
        adapters: OfClips = None,
    ) -> list[GeneratedClip]: ...

    def __call__(
        self,
        prompt: str | list[str] | tuple[str, ...],
        image: Picture = None,
        seed: int = 0,
        *,
        last_image: Picture = None,
        given: GivenClip | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative_prompt: str = "",
        batch: int | None = None,
        adapters: OfClips = None,
    ) -> GeneratedClip | list[GeneratedClip]:
        """Make a clip from a prompt, or a list of clips from several prompts. Clip i has the seed `seed + i`.

        image, last_image: first and last frame of all clips: a picture file, a video file (its first frame), or uint8
        [h, w, 3]. They are resized and cropped to the clip. given: what of the clip is given, such as
        `GivenClip.pictures("rain.mp4")`, for which sound is made. steps, guidance: None: the model's own. batch: clips
        that are denoised at once; None: `default_batch`. adapters: strengths of `pipeline.adapters` for these clips, by
        name (`ActiveAdapters.set`), or a list with those of each clip; None: those that are set. For a single process.
        Raises MovaError as `generate` does.
        """
        settings = default_settings(self.mova.config)
        stated = {"steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
        settings = replace(settings, **{name: value for name, value in stated.items() if value is not None})
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        first, last, chosen = self._frame(image), self._frame(last_image), strengths_of(prompts, adapters)
        if given is not None:
            given.check(self.shape)
        requests = [Request(x, seed + i, first, last, given, chosen[i]) for i, x in enumerate(prompts)]
        batch = batch or default_batch(self.shape, len(requests))
        clips = [
            self._generated(request, clip)
            for request, clip in zip(requests, self.generate(requests, settings, batch=batch), strict=True)
        ]
        return clips[0] if isinstance(prompt, str) else clips

    def _generated(self, request: Request, clip: Clip | None) -> GeneratedClip:
        if clip is None:
            raise MovaError("with several processes only rank 0 gets the clips: use `generate`")
        fps, rate = self.shape.fps, self.shape.sample_rate
        return GeneratedClip(clip.pictures, clip.audio[None], fps, rate, request.caption, request.seed)

    def _frame(self, picture: Picture) -> np.ndarray | None:
        return read_frame(picture, self.shape) if isinstance(picture, str | Path) else picture

    def read_weights(self) -> None:
        """Read all weights into host memory now instead of during the first call, for a server that must be ready.

        With `MemoryConfig(idle="files")` this does nothing.
        """
        if self.residency is not None:
            self.residency.read_ahead(*CODEC_PARTS, *COMPONENTS)


def load_pipeline(
    folder: str | Path,
    backend: Backend,
    *,
    dtype: torch.dtype | None = None,
    clip: ClipConfig | None = None,
    memory: MemoryConfig | None = None,
    lora: Sequence[AdapterSpec] = (),
    processes: Processes | None = None,
    shard: bool = False,
    config: MovaConfig | None = None,
) -> Pipeline:
    """Open the pipeline of a model folder on the backend's device. Weights are read when their stages start.

    dtype, clip, memory: as in `Pipeline.from_pretrained`. lora: adapters, added together.
    processes: this process's position among several; the pipeline gets only the codecs that this process needs.
    shard: the pipeline gets only this process's shard of the weights. config: the folder's model, if already read.
    Raises MovaError for missing or damaged files.
    """
    folder, place, memory = Path(folder), processes or Processes(), memory or MemoryConfig()
    facts = trained(folder)
    config = config or mova_config_from_folder(folder)
    more: dict[str, Any] = {"dtype": dtype, "memory": memory, "shard": shard}
    more |= {"lora": lora}
    mova, codecs, residency, adapters = open_parts(folder, config, backend, place, **more)
    return Pipeline(
        mova,
        codecs,
        facts.schedule,
        facts.prediction,
        LoopOptions(facts.clean_first_frame, facts.bridge, facts.start_frames > 0),
        clip,
        place,
        shard,
        residency.device,
        residency,
        adapters=adapters,
    )
