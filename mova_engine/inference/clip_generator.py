"""Makes clips of requests, batch by batch, in one process or several: encodes, denoises, decodes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mova_engine.checkpoints.folder import Codecs
from mova_engine.config.model import ClipConfig
from mova_engine.config.stages import EXPERTS, LOAD_TOWERS
from mova_engine.data.media.decode import Clip
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.active_adapters import ActiveAdapters, adapters_of, check_adapters
from mova_engine.inference.clip_codecs import ClipCodecs, Encoded
from mova_engine.inference.clip_sinks import Made, Sinks, WholeClip
from mova_engine.inference.denoising import LoopOptions, Observed, Step, denoise, draw_noise
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.turns import Turn, batched, part_of, turns_of
from mova_engine.inference.velocities import Latents
from mova_engine.memory.chosen_memory import ChosenMemory
from mova_engine.memory.residency import Residency
from mova_engine.models.mova import Mova

# The default batch has about this many video tokens, and at most this many clips; at the released sizes it is one clip.
BATCH_TOKENS, MOST_CLIPS = 4096, 16
# Clips whose prompts and frames are encoded before the first of them is denoised; at 360p 18 MB of host memory each.
ENCODED_AHEAD = 256
# The stage passed to `on_stage` whose duration depends on the disk.
LOADING = "loading towers"
# The stage with which denoising of a batch begins.
FIRST_STEP = "first step"
NO_CODECS = Codecs(None, None, None)


def default_batch(clip: ClipConfig, count: int) -> int:
    """The default batch size for `count` clips: many small clips, or one of a released size, keep a device busy."""
    return max(1, min(MOST_CLIPS, BATCH_TOKENS // clip.video_tokens, count))


@dataclass
class ClipGenerator:
    """A model with its codecs and text encoder, which makes clips of requests.

    schedule, prediction and the first three of options must be those of the training.
    clip: shape of the clips; None: `mova.config.clip`. processes: the processes of the run, each of which has its own
    pipeline with the codecs that `loading.own_codecs` names. sharded: each process holds a shard of the weights.
    device: where the towers compute; None: where their weights are. residency: moves the parts to the device for their
    stages; None: all of them are on their devices. chosen: what the planner chose, where it was asked to. adapters:
    switches adapters on and off between clips; None: the pipeline takes none.
    """

    mova: Mova
    codecs: Codecs = NO_CODECS
    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = field(default_factory=Prediction)
    options: LoopOptions = field(default_factory=LoopOptions)
    clip: ClipConfig | None = None
    processes: Processes = field(default_factory=Processes)
    sharded: bool = False
    device: torch.device | None = None
    residency: Residency | None = None
    chosen: ChosenMemory | None = None
    adapters: ActiveAdapters | None = None

    @property
    def shape(self) -> ClipConfig:
        """The shape of the generated clips."""
        return self.clip or self.mova.config.clip

    def generate(
        self,
        requests: Sequence[Request],
        settings: SampleSettings,
        *,
        batch: int = 1,
        encoded: Sequence[Encoded] | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_stage: Callable[[str], object] = lambda _: None,
    ) -> Iterator[Clip | None]:
        """Yield a clip per request, in order, as each batch of `batch` clips is done. Its pictures and its sound have
        the same duration. A clip does not depend on the other clips of its batch.

        on_step: called after each denoising step. on_stage: called with a description of the next stage, and between
        the frames that are decoded at once; what either of them raises ends the work.
        encoded: the results of `ClipCodecs.encode` for each batch, for a single process; None: encode now.
        With several processes all pass the same requests, and each data-parallel group makes one batch at a time. Rank
        0 yields the clips, the others yield None for each. Raises MovaError if latents are not finite.
        """

        def whole(_: Request) -> WholeClip:
            return WholeClip(self.shape.frames, self.shape.height, self.shape.width)

        more: dict[str, Any] = {"batch": batch, "encoded": encoded, "on_step": on_step, "on_stage": on_stage}
        return self.generate_into(whole, requests, settings, **more)

    def generate_into(
        self,
        sinks: Sinks[Made],
        requests: Sequence[Request],
        settings: SampleSettings,
        *,
        batch: int = 1,
        encoded: Sequence[Encoded] | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_stage: Callable[[str], object] = lambda _: None,
    ) -> Iterator[Made | None]:
        """As `generate`, with what `sinks` makes of each clip in its place. A clip's pictures go there a few at a time,
        as they are decoded; of groups of processes, each makes its own clips, and sends what it has made.
        """
        if batch < 1:
            raise MovaError(f"batch must be at least 1, got {batch}")
        check_adapters(self.adapters, requests)
        turns = turns_of(requests, batch, self.processes.shape.data_parallel)
        ahead = max(1, ENCODED_AHEAD // batch)
        for start in range(0, len(turns), ahead):
            some = turns[start : start + ahead]
            if encoded is None:
                if self.mova.streamed is not None:
                    self.mova.streamed.free()
                on_stage("encoding words and first frames")
                ready = self._clip_codecs.encode([self._part(turn) for turn in some], settings.negative_prompt)
            else:
                ready = encoded[start : start + ahead]
            self._load_towers(on_stage)
            for turn, inputs in zip(some, ready, strict=True):
                yield from self._turn(sinks, turn, inputs, settings, on_step, on_stage)

    def latents(
        self,
        requests: Sequence[Request],
        settings: SampleSettings,
        *,
        batch: int = 1,
        on_step: Callable[[Step], None] | None = None,
        observe: Callable[[Observed], None] | None = None,
    ) -> Iterator[Latents]:
        """Yield the clean latents of each batch, which are not decoded. observe: see `denoise`. The rest: as of
        `generate`. For a single process.
        """
        for some in batched(requests, batch):
            (inputs,) = self._clip_codecs.encode([some], settings.negative_prompt)
            self._load_towers(lambda _: None)
            with adapters_of(self.adapters, some):
                yield self._denoise(some, inputs, settings, on_step, lambda _: None, observe)

    def _load_towers(self, on_stage: Callable[[str], object]) -> None:
        """Load the towers that stay on the device between stages. All processes wait for the one with the slowest
        disk.
        """
        if self.residency is not None:
            on_stage(LOADING)
            # An expert that waits on the host is read to there, and comes for its steps.
            self.residency.read_ahead(*(name for name in EXPERTS if not self.residency.lingers(name)))
            with self.residency.stage(LOAD_TOWERS):
                self.processes.wait_for_first()

    def _part(self, turn: Turn) -> Sequence[Request]:
        """The batch of a turn that this process works on."""
        return part_of(turn, self.processes.data_rank, self.sharded)

    def _turn(
        self,
        sinks: Sinks[Made],
        turn: Turn,
        inputs: Encoded,
        settings: SampleSettings,
        on_step: Callable[[Step], None] | None,
        on_stage: Callable[[str], object],
    ) -> Iterator[Made | None]:
        """Make one batch in each data-parallel group."""
        place, part = self.processes, self._part(turn)
        with ExitStack() as stack:
            made: Iterator[Made | None] = iter(())
            if part:
                with adapters_of(self.adapters, part):
                    latents = self._denoise(part, inputs, settings, on_step, on_stage)
                if place.data_rank < len(turn):
                    made = stack.enter_context(closing(self._clip_codecs.decode(latents, part, on_stage, sinks)))
            if place.is_first:
                yield from made
                on_stage("collecting clips of other groups")
                for group, requests in enumerate(turn[1:], 1):
                    yield from (place.receive_object_from(group) for _ in requests)
                return
            for each in made:
                if each is not None:
                    place.send_object_to_first(each)
            yield from (None for requests in turn for _ in requests)

    def _denoise(
        self,
        requests: Sequence[Request],
        inputs: Encoded,
        settings: SampleSettings,
        on_step: Callable[[Step], None] | None,
        on_stage: Callable[[str], object],
        observe: Callable[[Observed], None] | None = None,
    ) -> Latents:
        # The audio tower is on the device during all steps, the video experts may be on the host.
        device = self.device or self.mova.audio_dit.head.head.weight.device
        conditions = self._clip_codecs.gather(inputs, requests, device)

        def stepped(step: Step) -> None:
            on_stage(f"step {step.index + 1} of {settings.count} done")
            if on_step is not None:
                on_step(step)

        on_stage(FIRST_STEP)
        return denoise(
            self.mova,
            conditions,
            draw_noise(self.mova.config, [request.seed for request in requests], self.shape, device),
            settings.noise_levels(self.schedule),
            settings.guidance,
            self.prediction,
            fps=self.shape.fps,
            options=replace(
                self.options, solver=settings.solver, reused=settings.reused, first_block=settings.first_block
            ),
            on_step=stepped,
            observe=observe,
            processes=self.processes,
            residency=self.residency,
        )

    @property
    def _clip_codecs(self) -> ClipCodecs:
        return ClipCodecs(self.codecs, self.shape, self.processes, self.residency)
