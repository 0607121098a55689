"""What a step takes at once: clips on the device, their noise, and what was drawn for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mova_engine.config.mesh import MeshShape
from mova_engine.config.train import TrainConfig
from mova_engine.train.batch import BuildBatch, LatentBatch
from mova_engine.train.timestep_sampling import StepDraw, draw_noise, draw_step, first_clip


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of step number `step` (from 0). noise: of audio and video (joint task), float32 on the device.
    step_draw: what the whole step draws. draw: this micro-batch's part of it. heard [b, 1]: whether the clips have
    sound, float32 on the CPU; None where the step need not know.
    """

    step: int
    clips: LatentBatch
    noise: tuple[Tensor, ...]
    step_draw: StepDraw
    draw: StepDraw
    heard: Tensor | None


class Preparer:
    """Makes micro-batches of a loader's batches, whose number tells what is drawn for them.

    experts: of the model's video. data_rank: of the mesh `shape`. build: converts a loader's batch.
    pin: pass the tensors through pinned host memory, so that copies to the device do not block.
    """

    def __init__(
        self,
        config: TrainConfig,
        experts: int,
        shape: MeshShape,
        data_rank: int,
        build: BuildBatch,
        pin: bool = False,
    ) -> None:
        self._config, self._experts, self._build, self._pin = config, experts, build, pin
        self._diffusion = config.diffusion.of_task(config.task)
        self._groups, self._data_rank = shape.data_parallel, data_rank
        self.micro_batches = config.micro_batches(shape)
        # The step that was drawn last, and what.
        self._drawn: tuple[int, StepDraw] | None = None

    def __call__(self, number: int, batch: Mapping[str, Any]) -> MicroBatch:
        """number: of the micro-batch, from the run's first one, in this process. batch: as the loader gives it."""
        (step, micro), size, seed = divmod(number, self.micro_batches), self._config.loader.batch, self._config.seed
        if self._drawn is None or self._drawn[0] != step:
            clips = self.micro_batches * size * self._groups
            self._drawn = step, draw_step(self._diffusion, self._experts, seed, step, clips)
        draw, first = self._drawn[1], first_clip(micro, self._groups, self._data_rank, size)
        if self._pin:
            batch = {name: x.pin_memory() if isinstance(x, Tensor) else x for name, x in batch.items()}
        clips = self._build(batch)
        noise = draw_noise(clips.noise_shapes(), seed, step, first, size)
        if self._pin:
            noise = tuple(x.pin_memory() for x in noise)
        noise = tuple(x.to(clips.audio.device, non_blocking=True) for x in noise)
        heard = batch["heard"].cpu() if self._config.loader.silent_audio == "mask" else None
        return MicroBatch(step, clips, noise, draw, draw.part(first, size), heard)
