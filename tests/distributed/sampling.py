"""Sampling inside the processes of a World: together, and in rank 0 alone."""

import functools
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from distributed.device import backend, device
from torch import Tensor, nn

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import save_mova
from mova_engine.codecs import build_audio_codec, build_video_codec
from mova_engine.codecs.row_sharding import convolutions_on
from mova_engine.codecs.wan import WanVideoCodec
from mova_engine.config.mesh import choose_mesh
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed import branches
from mova_engine.distributed.decoder_rows import SharedRows
from mova_engine.distributed.fsdp import shard_model
from mova_engine.distributed.processes import Processes, read_launch, start_processes
from mova_engine.inference import denoising
from mova_engine.inference.__main__ import main
from mova_engine.inference.denoising import LoopOptions, denoise, draw_noise
from mova_engine.inference.given_latents import GivenLatents
from mova_engine.inference.pipeline import Pipeline, load_pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.velocities import Conditions, Latents
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

# 3 x 3 x 5 = 45 tokens, which no number of ranks here divides; 6 x 10 latents a frame.
MODEL = MovaConfig(
    "small",
    VideoDiTConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16, freq_dim=16),
    AudioDiTConfig(dim=24, ffn_dim=32, num_heads=1, num_layers=2, text_dim=16, freq_dim=16),
    BridgeConfig(2, 2, 48, 24, head_dim=24),
    ClipConfig(frames=9, height=48, width=80),
    experts=2,
    text_tokens=12,
    video_codec="dct",
    audio_codec="mdct",
    text_encoder="bytes",
)
CAPTIONS = ("a red ball bouncing", "rain", "wind in the trees")


def place(cfg: int, context_parallel: int, ulysses: int | None) -> Processes:
    """The world as a mesh for sampling; what is left makes other clips."""
    torch.set_num_threads(1)
    launch = read_launch()
    shape = choose_mesh(launch.world, 2, context_parallel=context_parallel, ulysses=ulysses, cfg=cfg)
    return start_processes(backend(), launch, shape, timeout_s=120, sampling=True)


def fill(model: Mova) -> Mova:
    """The same weights everywhere, none of them zero."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            size = 0.5 if name.endswith("bias") else weight[0].numel() ** -0.5 if weight.ndim > 1 else 1.0
            weight.normal_(0.0, size, generator=source)
    return model


# How a test can break sampling in several processes.
def _swapped_branches(every, own, group):
    """Each evaluation is taken for another."""
    found = branches.all_branches(every, own, group)
    return dict(zip(found, reversed(found.values()), strict=True))


def _own_branches_alone(every, own, group):
    """Nothing is exchanged: whatever this rank has not computed is taken to be what it has."""
    return {branch: next(iter(own.values())) for branch in every}


BROKEN: dict[str, Callable] = {"swapped": _swapped_branches, "not exchanged": _own_branches_alone}


def errors_of_sampling(
    cfg: int,
    context_parallel: int,
    ulysses: int | None,
    forms: tuple[str, ...],
    fsdp: bool = False,
    batch_guidance: bool = True,
    mutation: str | None = None,
    begin: float = 0.0,
    end: float = 1.0,
    video_every: int = 1,
    reused: tuple[int, ...] = (),
) -> dict[str, tuple[float, float, bool]]:
    """How far the latents that all ranks make together are from one process's, by form of guidance: video and audio,
    relative to the maximum; and whether this rank's are rank 0's to the last bit. begin, end: of guidance, shares of
    the steps. video_every: not 1: sound for a given video, whose tower runs so often. reused: steps that reuse a video.
    """
    group, ops = place(cfg, context_parallel, ulysses), bind(backend(), training=False)
    table, alone = group.operators(ops), fill(Mova(MODEL, ops)).to(device())
    model = fill(Mova(MODEL, table)).to(device())
    if fsdp:
        weights, model = dict(model.named_parameters()), Mova(MODEL, table, "meta")
        shards = shard_model(model, group, device())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                shards.piece(parameter).take(weights[name])
    errors = {}
    for form in forms:
        guidance, options = Guidance(form, 3.0, 2.0, begin=begin, end=end), LoopOptions(False, True, batch_guidance)
        options = replace(options, video_every=video_every, reused=tuple(reused))
        run = functools.partial(_denoised, guidance=guidance, options=options)
        with ExitStack() as broken:
            if mutation is not None:
                broken.enter_context(patch.object(denoising, "all_branches", BROKEN[mutation]))
            found = run(model, processes=group)
        first = Latents(*(group.clip.broadcast(x.clone()) for x in found))
        same = all(torch.equal(x, y) for x, y in zip(found, first, strict=True))
        truth = run(alone)
        errors[form] = (_distance(found.video, truth.video), _distance(found.audio, truth.audio), same)
    return errors


def _denoised(model: Mova, guidance: Guidance, options: LoopOptions, processes: Processes | None = None) -> Latents:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 16, *MODEL.clip.latent_shape, generator=generator)
    text, empty = torch.randn(2, 2, 12, 16, generator=generator)
    image, text, empty = (x.to(device()) for x in (image, text, empty))
    given = None if options.video_every == 1 else GivenLatents.whole(image.flip(0))
    return denoise(
        model,
        Conditions(first_frame_condition(image), text, empty, video=given),
        draw_noise(MODEL, (3, 4), MODEL.clip, device()),
        Schedule().inference(4),
        guidance,
        Prediction(),
        options=options,
        processes=processes,
    )


def _distance(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max())


class _Upsampling(nn.Sequential):
    """What pictures' rows go through in a decoder: convolutions over time and space, a doubling, convolutions."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        space = nn.Conv2d(6, 4, 3, padding=1)
        super().__init__(
            nn.Conv3d(4, 6, 3, padding=1), nn.SiLU(), nn.Conv3d(6, 6, (3, 1, 1), padding=(1, 0, 0)), _Frames(space)
        )


class _Frames(nn.Module):
    """Doubles each frame and convolves it."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        frames = F.interpolate(x.movedim(2, 1).flatten(0, 1), scale_factor=2.0, mode="nearest-exact")
        return self.convolution(frames).unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)


def _zeros_beyond(rows: SharedRows, x: Tensor) -> Tensor:
    """A dropped halo: zeros in place of the neighbours' rows."""
    return F.pad(x, (0, 0, int(rows._above), int(rows._below)))


@torch.no_grad()
def error_of_rows(total: int, mutation: bool = False) -> tuple[int, float]:
    """How many rows this rank decodes, and how far they are from one process's, at most."""
    group, module = place(1, read_launch().world, 1), _Upsampling().to(device())
    x = torch.randn(1, 4, 3, total, 5, generator=torch.Generator().manual_seed(2)).to(device())
    rows = group.rows(total)
    if not rows.own:
        return 0, 0.0
    truth = module(x).narrow(-2, 2 * sum(rows.lengths[: group.clip.rank]), 2 * rows.own)
    with ExitStack() as stack:
        if mutation:
            stack.enter_context(patch.object(SharedRows, "widened", _zeros_beyond))
        with convolutions_on(rows, module):
            found = module(rows.take(x))
    return rows.own, float((found - truth).abs().max())


def error_of_wan_rows(heights: tuple[int, ...], mutation: bool = False) -> list[float]:
    """How far a small Wan decoder's pictures, decoded by rows, are from those of one decoding, by latent height."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    codec = WanVideoCodec(AutoencoderKLWan(base_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1).to(device()))
    group, errors = place(1, read_launch().world, 1), []
    for height in heights:
        latents = torch.randn(1, 16, 3, height, 4, generator=torch.Generator().manual_seed(height)).to(device())
        rows = group.rows(height)
        truth = codec.decode(latents)
        with ExitStack() as stack:
            if mutation:
                stack.enter_context(patch.object(SharedRows, "widened", _zeros_beyond))
            found = codec.decode(latents, rows)
        own = truth.narrow(-2, 8 * sum(rows.lengths[: group.clip.rank]), 8 * rows.own)
        errors.append(float((found - own).abs().max()))
    return errors


def save(folder: Path) -> None:
    """The model as a checkpoint folder."""
    codecs = {"video_codec": build_video_codec("dct"), "audio_codec": build_audio_codec("mdct")}
    save_mova(fill(Mova(MODEL, bind(get_backend("cpu")))), folder, **codecs)


def errors_of_clips(
    checkpoint: str, cfg: int, context_parallel: int, shard: bool, count: int, batch: int
) -> tuple[int, list[tuple[float, float]], tuple[bool, bool, bool]]:
    """How many clips this rank was given, of `count`; in rank 0 how far each is from one process's: in levels of a
    picture, and of the sound relative to its maximum; and which codecs this rank has loaded.
    """
    group, settings = place(cfg, context_parallel, None), SampleSettings(3, Guidance("dual", 3.0, 2.0))
    frame = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
    requests = [Request(CAPTIONS[i % 3], i, frame if i % 2 else None) for i in range(count)]
    together = load_pipeline(checkpoint, backend(), processes=group, shard=shard)
    clips = list(together.generate(requests, settings, batch=batch))
    assert len(clips) == count
    loaded = tuple(codec is not None for codec in together.codecs)
    found = [clip for clip in clips if clip is not None]
    if not found:
        return 0, [], loaded
    alone: Pipeline = load_pipeline(checkpoint, backend())
    errors = []
    for clip, truth in zip(found, alone.generate(requests, settings, batch=batch), strict=True):
        levels = np.abs(clip.video.astype(int) - truth.video).max()
        errors.append((float(levels), float(np.abs(clip.audio - truth.audio).max() / np.abs(truth.audio).max())))
    return len(found), errors, loaded


def commanded(arguments: list[str], run: str) -> str | int:
    """`python -m mova_engine.inference` in this process; its status, or what it says."""
    os.environ["TORCHELASTIC_RUN_ID"] = run
    try:
        return main([*arguments, "--device", backend().name])
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
