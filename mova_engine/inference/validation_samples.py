"""Samples during training, made with the trainer's model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mova_engine.checkpoints.folder import Codecs
from mova_engine.config.model import ClipConfig
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.processes import Processes
from mova_engine.inference.clip_codecs import ClipCodecs, Encoded
from mova_engine.inference.denoising import LoopOptions
from mova_engine.inference.encoded_clip import sample_encoders
from mova_engine.inference.pipeline import Pipeline
from mova_engine.inference.requests import Prompt, Request, make_requests
from mova_engine.inference.sample_folder import SampleFolder
from mova_engine.inference.sample_settings import default_settings
from mova_engine.inference.turns import batched
from mova_engine.memory.residency import Residency
from mova_engine.models.mova import Mova

# Clips at a time.
BATCH = 4


@dataclass(frozen=True)
class SampleInputs:
    """The inputs of samples of one shape: requests, and their encoded prompts and first frames, on the host."""

    shape: ClipConfig
    requests: tuple[Request, ...]
    encoded: tuple[Encoded, ...]


def encode_samples(
    codecs: Codecs,
    shape: ClipConfig,
    residency: Residency | None,
    prompts: Sequence[Prompt],
    seed: int,
) -> SampleInputs:
    """Encode captions and first frames; prompt i gets the seed `seed + i`, unless it has its own.

    Called once, before the model is built, so that the text encoder and the model are never in memory together.
    """
    requests = [request for _, request in make_requests(prompts, len(prompts), seed)]
    encoded = ClipCodecs(codecs, shape, Processes(), residency).encode(batched(requests, BATCH), "")
    return SampleInputs(shape, tuple(requests), tuple(encoded))


def make_samples(
    *,
    model: Mova,
    codecs: Codecs,
    schedule: Schedule,
    prediction: Prediction,
    clean_first_frame: bool,
    inputs: Sequence[SampleInputs],
    out: Path,
    bridge: bool = True,
    steps: int | None = None,
    residency: Residency | None = None,
) -> Path:
    """Write a clip for each request of `inputs` to the folder `out`; return the path of its contact sheet.

    The same seed gives the same noise at every call, so that samples of successive steps can be compared. Existing
    samples in `out` are replaced. Settings are the model's defaults, except the number of denoising `steps` if given;
    the model is not changed. residency: moves the codecs to the device while they decode.
    """
    options = LoopOptions(clean_first_frame, bridge)
    wanted = sum(len(each.requests) for each in inputs)
    folder = SampleFolder(out, model.config.clip, wanted, overwrite=True)
    settings = default_settings(model.config)
    settings = settings if steps is None else replace(settings, steps=steps)
    for each in inputs:
        pipeline = Pipeline(model, codecs, schedule, prediction, options, each.shape, residency=residency)
        encoders = sample_encoders(each.shape, each.shape.frames, wanted)
        clips = pipeline.generate_into(encoders, each.requests, settings, batch=BATCH, encoded=each.encoded)
        for request, clip in zip(each.requests, clips, strict=True):
            if clip is not None:
                folder.add(clip, request.caption, {"seed": request.seed})
    return folder.finish()
