"""One optimizer step: micro-batches, their losses, clipping, the update; skipped where something is not finite.

`micro_losses` is what a trainer of one's own would call too.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mova_engine.backend import describe_backend
from mova_engine.backend.host_copies import to_device
from mova_engine.config.model import ClipConfig
from mova_engine.config.train import TrainConfig
from mova_engine.diffusion.conditioning import first_frame_condition, video_input
from mova_engine.diffusion.loss import Losses, Share, mse, velocity_loss
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import add_noise
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.fsdp import clip_grad_norm, global_norm
from mova_engine.distributed.gradients import BackwardSums, sum_gradients
from mova_engine.distributed.processes import Processes
from mova_engine.distributed.stop_signals import ASKED
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.models.modality import Modality
from mova_engine.models.mova import DIRECT, LayerRunner, Mova
from mova_engine.ops import OpTable
from mova_engine.train.batch import BuildBatch, LatentBatch
from mova_engine.train.given_start import GivenStart, SeenNoise
from mova_engine.train.masters import Weights
from mova_engine.train.metrics import EXPERTS
from mova_engine.train.micro_batch import MicroBatch, Preparer
from mova_engine.train.optimizer import lr_factor, set_lr
from mova_engine.train.timestep_sampling import StepDraw


def micro_losses(
    mova: Mova,
    batch: LatentBatch,
    draw: StepDraw,
    noise: tuple[Tensor, ...],
    config: TrainConfig,
    sharding: Sharding = NO_CP,
    runner: LayerRunner = DIRECT,
) -> Losses:
    """Losses on one micro-batch, float32 scalars; `draw` and `noise` (audio, video) are this micro-batch's part.

    The networks' outputs become velocities before the loss (see `diffusion.prediction`). Where processes share the
    clips, these are this one's share of the losses, and so are the gradients: see `parallel.context`. runner: how the
    layers are run (`memory.checkpointing.layer_runner`).
    """
    if config.task == "audio":
        return _audio(mova, batch, draw, noise, config)
    return _joint(mova, batch, draw, noise, config, sharding, runner)


def _joint(
    mova: Mova,
    batch: LatentBatch,
    draw: StepDraw,
    noise: tuple[Tensor, ...],
    config: TrainConfig,
    sharding: Sharding,
    runner: LayerRunner,
) -> Losses:
    times, prediction, expert = draw.times, Prediction.of(config.diffusion), draw.expert or 0
    audio_noise, video_noise = noise
    assert batch.video is not None and batch.image is not None, "a joint batch has video"
    noisy_video = add_noise(batch.video, video_noise, times.video_sigma)
    noisy_audio = add_noise(batch.audio, audio_noise, times.audio_sigma)
    text, first = batch.context(draw.drop_text), int(config.diffusion.skip_first_frame)
    video_factors = _product(draw.video_factors, None, batch.audio.device)
    audio_factors = _product(draw.audio_factors, batch.audio_factors, batch.audio.device)
    seen_video, seen_audio = SeenNoise(noisy_video, times.video_timestep), SeenNoise(noisy_audio, times.audio_timestep)
    if draw.starts is not None:
        start = GivenStart.of(batch.shape(mova.config.clip), config.diffusion.start_frames, draw.starts)
        seen_video, seen_audio = start.video.shown(seen_video, batch.video), start.audio.shown(seen_audio, batch.audio)
        video_factors, audio_factors = start.video.counted(video_factors, first), start.audio.counted(audio_factors)
    video, audio = mova(
        Modality(
            video_input(seen_video.latents, first_frame_condition(batch.image)),
            seen_video.timestep,
            text,
            index=seen_video.index,
        ),
        Modality(seen_audio.latents, seen_audio.timestep, text, index=seen_audio.index),
        expert=expert,
        bridge=config.model.bridge and draw.bridge,
        fps=mova.config.clip.fps,
        runner=runner,
        sharding=sharding,
    )
    share = Share(mova.expert(expert).own_latents(batch.video.shape, sharding, batch.video.device), 1 / sharding.size)
    return velocity_loss(
        *prediction.compared(video.float(), batch.video, video_noise, noisy_video, times.video_sigma),
        *prediction.compared(audio.float(), batch.audio, audio_noise, noisy_audio, times.audio_sigma),
        config.diffusion.weights(),
        share,
        video_factors,
        audio_factors,
    )


def _product(drawn: Tensor | None, of_clips: Tensor | None, device: torch.device) -> Tensor | None:
    """Factors [b] of the clips' losses; None: all 1."""
    if drawn is None:
        return of_clips
    drawn = to_device(drawn, device)
    return drawn if of_clips is None else drawn * of_clips


def _audio(mova: Mova, batch: LatentBatch, draw: StepDraw, noise: tuple[Tensor, ...], config: TrainConfig) -> Losses:
    """The audio tower alone, as in its pre-training; the video's loss is zero."""
    sigma, prediction = draw.times.audio_sigma, Prediction.of(config.diffusion)
    noisy = add_noise(batch.audio, noise[0], sigma)
    output = mova.audio_dit(Modality(noisy, draw.times.audio_timestep, batch.context(draw.drop_text)))
    loss = mse(*prediction.compared(output.float(), batch.audio, noise[0], noisy, sigma))
    return Losses(config.diffusion.audio_weight * loss, torch.zeros_like(loss), loss)


@dataclass(frozen=True)
class StepResult:
    """What a step reports: values to average into the metrics, the clips it saw, and whether the weights moved.

    ranks: of several processes, those whose own loss was not finite; the clips are then theirs. clip: their shape.
    asked: the greatest number that any process was asked for (`StopRequest.wanted`).
    """

    values: dict[str, float]
    ids: tuple[str, ...]
    taken: bool
    clip: ClipConfig
    ranks: tuple[int, ...] = ()
    asked: int = 0


class Updater:
    """Runs optimizer steps of one model, in one process or in step with others."""

    def __init__(
        self,
        config: TrainConfig,
        model: Mova,
        weights: Weights,
        optimizer: torch.optim.Optimizer,
        ops: OpTable,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.model, self.weights, self.optimizer, self.ops = config, model, weights, optimizer, ops
        self.processes = processes or Processes()
        self.experts = 2 if model.video_dit_2 is not None else 1
        memory = config.memory
        self.runner = layer_runner(
            memory.checkpointing,
            memory.inputs == "host",
            offload_saved=memory.saved == "host",
            gathered_ahead=weights.shards is not None and memory.prefetch != "unit",
        )
        self.sums = self._sums_beside_backward()

    def _sums_beside_backward(self) -> BackwardSums | None:
        """Of gradients that several processes have whole, where the device allows it; FSDP2 sums those of shards."""
        weights, processes = self.weights, self.processes
        several = weights.shards is None and processes.world_group.size > 1
        if not several or not describe_backend(weights.tensors()[0].device.type).sums_in_backward:
            return None
        owners = zip(weights.masters, weights.parameters, strict=True)
        named = [(owner.name, parameter, owner.tensor) for owner, parameter in owners]
        return BackwardSums(named, processes.world_group, processes.shape.data_parallel)

    def preparer(self, build: BuildBatch, pin: bool = False) -> Preparer:
        """What makes micro-batches for `step` of a loader's batches. build, pin: as of `Preparer`."""
        return Preparer(self.config, self.experts, self.processes.shape, self.processes.data_rank, build, pin)

    def prepared(
        self, step: int, batches: Iterator[Mapping[str, Any]], build: BuildBatch, pin: bool = False
    ) -> Iterator[MicroBatch]:
        """Yield the micro-batches of steps `step`, `step + 1`, ..., each prepared when it is asked for."""
        prepare = self.preparer(build, pin)
        for number, batch in enumerate(batches, step * prepare.micro_batches):
            yield prepare(number, batch)

    def step(
        self,
        step: int,
        batches: Iterator[MicroBatch],
        at: Callable[[str], None] = lambda stage: None,
        detailed: bool = False,
        wanted: Callable[[], int] = lambda: 0,
    ) -> StepResult:
        """Take step number `step` (from 0) on the next micro-batches, which are prepared for it. detailed: also the
        gradients' norms per tower. at: told what the step has come to. wanted: what this process was asked for, 0 or
        one of `ASKED`; it reaches the other processes with the losses.

        If loss or gradients are not finite, the weights stay as they are. Where the optimizer sees to that on the
        device, the device is waited for once, when it has been given the whole step; else before the update.
        """
        config, processes = self.config, self.processes
        groups = processes.shape.data_parallel
        micro_batches = config.micro_batches(processes.shape)
        self.weights.zero_grad()
        losses, ids, waited, shape = [], [], 0.0, self.model.config.clip
        stage = f"step {step + 1}: reading clips"
        heard = draw = None
        if config.loader.silent_audio == "mask":
            at(stage)
            asked = time.perf_counter()
            # Of all clips of the step it must be known how many are heard, before any of them is learned from.
            held = list(islice(batches, micro_batches))
            waited = time.perf_counter() - asked
            heard = self.heard(held)
            batches = iter(held)
        shards = self.weights.shards
        for number in range(micro_batches):
            at(stage)
            asked = time.perf_counter()
            micro = next(batches)
            waited += time.perf_counter() - asked
            if micro.step != step:
                raise AssertionError(f"step {step} was given what was prepared for step {micro.step}")
            at(f"step {step + 1}: forward and backward")
            draw, batch = micro.step_draw, self.masked(micro, heard)
            if shards is not None:
                shards.begin_micro_batch(number + 1 == micro_batches, self.idle(draw))
            if self.sums is not None and number + 1 == micro_batches:
                self.sums.begin(self.idle(draw))
            result = micro_losses(self.model, batch, micro.draw, micro.noise, config, processes.sharding, self.runner)
            (result.total / micro_batches).backward()
            losses.append(torch.stack([result.total, result.video, result.audio]).detach())
            ids += batch.ids
            shape = batch.shape(shape)
        assert draw is not None, "a step has a micro-batch"
        at(f"step {step + 1}: update")
        gradients = self.weights.gradients()
        losses = torch.stack(losses).mean(0)
        own = losses.clone()
        every = [g for group in gradients.values() for g in group]
        flags = _flags(wanted(), losses.device)
        # Those of sharded weights are summed as soon as a block has them, others as soon as a bucket is full.
        beside = shards is not None or self.sums is not None
        sum_gradients([losses, flags] if beside else [losses, *every, flags], processes.world_group, groups)
        if self.sums is not None:
            self.sums.finish()
        towers = self._norms(gradients) if detailed else {}
        if shards is None:
            norm = self.ops.clip_grad_norm(every, config.optim.clip)
        else:
            norm = clip_grad_norm(every, config.optim.clip, shards.group)
        set_lr(self.optimizer, lr_factor(step, config.steps, config.optim))
        taken = self._updated_on_device(losses[0], norm)
        # With offloaded weights the gradients, and so their norms, are on the CPU.
        read = [losses, norm.view(1), flags, *([] if heard is None else [heard]), *(x.view(1) for x in towers.values())]
        total, video, audio, norm, *rest = torch.cat([to_device(x, losses.device) for x in read]).tolist()
        told, rest = rest[: len(ASKED)], rest[len(ASKED) :]
        asked = max((number for number, count in zip(ASKED, told, strict=True) if count), default=0)
        values = {"seconds/data": waited}
        if not (math.isfinite(total) and math.isfinite(norm)):
            return replace(self._skipped(values, own, tuple(ids), shape), asked=asked)
        if not taken:
            self.optimizer.step()
            self.weights.renew_copies()
        self.weights.average()
        with_sound = clips = 0.0
        if heard is not None:
            (with_sound, clips), rest = rest[:2], rest[2:]
        towers = dict(zip(towers, rest, strict=True))
        modalities = {"video": video, "audio": audio} if config.task == "joint" else {"audio": audio}
        if heard is not None:
            values["heard"] = with_sound / clips
            modalities = modalities if with_sound else {"video": video}
        # Of what is given in all clips of the step, there is no loss.
        learned = {"video": draw.video_factors, "audio": draw.audio_factors}
        modalities = {
            name: loss for name, loss in modalities.items() if (each := learned[name]) is None or bool(each.any())
        }
        values |= {"loss": total, **{f"loss/{name}": value for name, value in modalities.items()}, "skipped": 0.0}
        if draw.expert is not None:
            values |= {f"loss/{name}/{EXPERTS[draw.expert]}": value for name, value in modalities.items()}
        return StepResult({**values, "grad_norm": norm, **towers}, tuple(ids), taken=True, clip=shape, asked=asked)

    def idle(self, draw: StepDraw) -> list[nn.Module]:
        """Components that a step does not run."""
        model, used = self.model, [self.model.audio_dit, self.model.expert(draw.expert or 0)]
        if self.config.model.bridge and draw.bridge:
            used.append(model.dual_tower_bridge)
        return [part for part in model.children() if part not in used]

    def _updated_on_device(self, loss: Tensor, norm: Tensor) -> bool:
        """Give the device an optimizer step that changes nothing if loss or norm is not finite; whether it could be:
        the optimizer and the device must know how, and all of it must be on one device.
        """
        optimizer: Any = self.optimizer
        able = getattr(optimizer, "skips_on_device", False) and norm.device == loss.device
        if not able or not describe_backend(loss.device.type).obeys_found_inf:
            return False
        optimizer.found_inf = (~(loss.isfinite() & norm.isfinite())).float().view(())
        optimizer.step()
        self.weights.renew_copies()
        return True

    def heard(self, held: list[MicroBatch]) -> Tensor:
        """How many of the step's clips, of all processes, have sound, and how many there are, float32 [2] on the
        device. held: this process's.
        """
        here = torch.cat([micro.heard for micro in held if micro.heard is not None])
        # Those that share clips count the same ones.
        counts = to_device(torch.stack([here.sum(), torch.tensor(float(len(here)))]), held[0].clips.audio.device)
        return self.processes.world_group.all_reduce(counts)

    @staticmethod
    def masked(micro: MicroBatch, heard: Tensor | None) -> LatentBatch:
        """heard: as of `heard`; the clips with sound count more, so that the audio loss is a mean over them."""
        if heard is None or micro.heard is None:
            return micro.clips
        factors = to_device(micro.heard[:, 0], heard.device) / (heard[0] / heard[1]).clamp(min=1e-9)
        return replace(micro.clips, audio_factors=factors)

    def _skipped(
        self, values: dict[str, float], own: torch.Tensor, ids: tuple[str, ...], clip: ClipConfig
    ) -> StepResult:
        """All processes come here together. own: this one's losses."""
        found = self.processes.all_gather_object(ids if not own.isfinite().all() else None)
        ranks = tuple(rank for rank, theirs in enumerate(found) if theirs is not None)
        clips = dict.fromkeys(name for rank in ranks for name in found[rank]) or ids
        several = self.processes.launch.world > 1
        told = ranks if several else ()
        return StepResult({**values, "skipped": 1.0}, tuple(clips), taken=False, clip=clip, ranks=told)

    def _norms(self, gradients: dict[str, list[torch.Tensor]]) -> dict[str, Tensor]:
        """2-norm of each component's gradients, before clipping, float32 scalars."""
        group = Group() if self.weights.shards is None else self.weights.shards.group
        return {f"grad_norm/{name}": global_norm(part, group) for name, part in gradients.items()}


def _flags(wanted: int, device: torch.device) -> Tensor:
    """1 at the place of `wanted` in `ASKED`, float32: sums over processes tell what any of them was asked for."""
    flags = torch.zeros(len(ASKED), device=device)
    if wanted:
        flags[ASKED.index(wanted)] = 1.0
    return flags
