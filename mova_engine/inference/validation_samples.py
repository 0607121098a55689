"""Samples during training, of the model that the trainer has in memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mova_engine.checkpoints.folder import Codecs
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.inference.denoising import LoopOptions
from mova_engine.inference.pipeline import Pipeline, default_settings
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_folder import SampleFolder
from mova_engine.memory.residency import Residency
from mova_engine.models.mova import Mova


def make_samples(
    *,
    model: Mova,
    codecs: Codecs,
    schedule: Schedule,
    prediction: Prediction,
    clean_first_frame: bool,
    clips: Sequence[tuple[str, np.ndarray]],
    seed: int,
    out: Path,
    bridge: bool = True,
    residency: Residency | None = None,
    batch: int = 4,
) -> Path:
    """Write a clip for each (caption, first frame uint8 [h, w, 3]) to the folder `out`; return its contact sheet.

    The same seed gives the same noise at every call, so that samples of successive steps can be compared. Samples that
    `out` holds already are replaced. Settings are the model's defaults; the model is left as it is. residency: brings
    the codecs to the device while they are needed.
    """
    shape = model.config.clip
    options = LoopOptions(clean_first_frame, bridge)
    pipeline = Pipeline(model, codecs, schedule, prediction, options, residency=residency)
    requests = [Request(caption, seed + i, frame) for i, (caption, frame) in enumerate(clips)]
    folder = SampleFolder(out, shape, len(requests), overwrite=True)
    for request, clip in zip(
        requests, pipeline.generate(requests, default_settings(model.config), batch=batch), strict=True
    ):
        folder.add(clip, request.caption, {"seed": request.seed})
    return folder.finish()
