"""Validation during training: held-out loss, and samples.

The loss is computed with the averaged weights on fixed clips, noise levels and noise, so that it changes only with the
model. Samples are those that `mova sample` would make from held-out captions and first frames, or from prompts.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from mova_engine.checkpoints.folder import Codecs
from mova_engine.config.model import ClipConfig
from mova_engine.config.train import TrainConfig, ValidationSettings
from mova_engine.data.bucketed import BucketedClips, batches_of_one_shape
from mova_engine.data.dataset import LatentDataset
from mova_engine.data.metadata import Entry
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import HIGH_NOISE, LOW_NOISE, Schedule
from mova_engine.inference.requests import Prompt, prompts_of_lines, read_frame, read_prompts
from mova_engine.inference.validation_samples import SampleInputs, encode_samples, make_samples
from mova_engine.memory.residency import Residency
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.models.mova import Mova
from mova_engine.train.batch import BatchBuilder, LatentBatch
from mova_engine.train.metrics import EXPERTS
from mova_engine.train.step import StepDraw, micro_losses
from mova_engine.train.timestep_sampling import draw_noise, draw_times, generator


def read_own_prompts(settings: ValidationSettings, shape: ClipConfig) -> list[Prompt]:
    """The prompts that the settings give, as a list and as a file. Raises MovaError as `requests.read_prompts`."""
    own = prompts_of_lines(settings.prompt, shape, "validation.prompt", Path())
    return own if settings.prompts is None else [*own, *read_prompts(settings.prompts, shape)]


class Validator:
    """Held-out loss and samples of a run's model."""

    def __init__(
        self,
        config: TrainConfig,
        clips: LatentDataset | None,
        build: BatchBuilder,
        prompts: Sequence[Prompt] = (),
        sharding: Sharding = NO_CP,
    ) -> None:
        """clips: held-out ones; None: there are none, and samples of `prompts` are all that is made."""
        self.config, self.clips, self.build, self.sharding = config, clips, build, sharding
        self.prompts = prompts
        self.count = 0 if clips is None else min(config.validation.clips, len(clips))
        # The encoded inputs of the samples, by shape.
        self.inputs: list[SampleInputs] = []

    def encode(self, shape: ClipConfig, codecs: Codecs, residency: Residency) -> None:
        """Encode captions and first frames of held-out clips and of prompts for later samples: prompts in the run's
        `shape`, clips in their bucket's. Does nothing in the audio task. Raises MovaError if a clip cannot be read.
        """
        if self.config.task != "joint":
            return
        prompts: dict[ClipConfig, list[Prompt]] = {}
        for own, entry in self._sampled(shape):
            frame = read_frame(entry.path, own, entry.start, entry.edit)
            prompts.setdefault(own, []).append(Prompt(entry.caption, frame))
        if self.prompts:
            prompts.setdefault(shape, []).extend(self.prompts)
        seed = self.config.seed
        for own, some in prompts.items():
            self.inputs.append(encode_samples(codecs, own, residency, some, seed))
            seed += len(some)

    def _sampled(self, shape: ClipConfig) -> list[tuple[ClipConfig, Entry]]:
        """The held-out clips that are sampled, of buckets by their shares, each with its shape."""
        wanted = self.config.validation.samples
        if self.clips is None or not wanted:
            return []
        if not isinstance(self.clips, BucketedClips):
            return [(shape, entry) for entry in self.clips.entries[:wanted]]
        every = batches_of_one_shape(self.clips, min(wanted, len(self.clips)), 1)
        return [(self.clips.shape_of(index), self.clips.entries[index]) for (index,) in every]

    @torch.no_grad()
    def losses(self, model: Mova) -> dict[str, float]:
        """Return the mean held-out losses, as "heldout/video", and per expert if there are two, with the model's
        present weights.

        Processes that share clips each compute their share, and all return the sum.
        """
        sums: dict[str, float] = {}
        if self.clips is None:
            return sums
        masked, heard = self.config.loader.silent_audio == "mask", 0.0
        for expert in self._experts(model):
            source = generator(self.config.seed, "heldout", expert)
            times = draw_times(self.config.diffusion, source, expert, self.count)
            whole = StepDraw(expert, times, torch.zeros(self.count, dtype=torch.bool))
            first = 0
            for indices in batches_of_one_shape(self.clips, self.count, self.config.loader.batch):
                size = len(indices)
                clips = self.clips.batch(indices)
                audible = clips["heard"][:, 0]
                heard += float(audible.sum()) / self.count / len(self._experts(model))
                batch = self.build(clips, audible if masked else None)
                for name, value in self._batch_losses(model, batch, whole.part(first, size), first).items():
                    sums[name] = sums.get(name, 0.0) + value * size / self.count
                first += size
        if masked:
            # Means over the clips that have sound.
            audio = {name for name in sums if name.startswith("heldout/audio")}
            sums = {name: x / heard if name in audio else x for name, x in sums.items() if heard or name not in audio}
        # Not in float64, which HCCL does not sum.
        shares = torch.tensor(list(sums.values()), device=self.build.device)
        return dict(zip(sums, self.sharding.summed(shares).tolist(), strict=True))

    def _experts(self, model: Mova) -> tuple[int | None, ...]:
        return (HIGH_NOISE, LOW_NOISE) if model.video_dit_2 is not None else (None,)

    def _batch_losses(self, model: Mova, batch: LatentBatch, draw: StepDraw, first: int) -> dict[str, float]:
        noise = draw_noise(batch.noise_shapes(), self.config.seed, "heldout", first, len(batch.audio))
        noise = tuple(x.to(batch.audio.device) for x in noise)
        losses = micro_losses(model, batch, draw, noise, self.config, self.sharding)
        suffix = "" if draw.expert is None else f"/{EXPERTS[draw.expert]}"
        values = {"video": losses.video, "audio": losses.audio}
        if batch.video is None:
            del values["video"]
        return {f"heldout/{name}{suffix}": float(value) for name, value in values.items()}

    def sample(self, model: Mova, codecs: Codecs, residency: Residency, out: Path) -> None:
        """Write samples of the inputs that `encode` has prepared, if any, to the folder `out`.

        residency: moves the codecs to the device while they decode.
        """
        if not self.inputs:
            return
        diffusion = self.config.diffusion
        make_samples(
            model=model,
            codecs=codecs,
            schedule=Schedule.of(diffusion),
            prediction=Prediction.of(diffusion),
            clean_first_frame=diffusion.skip_first_frame,
            bridge=self.config.model.bridge,
            inputs=self.inputs,
            steps=self.config.validation.steps,
            out=out,
            residency=residency,
        )
