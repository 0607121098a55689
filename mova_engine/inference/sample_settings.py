"""The settings of a sampling run that change what is made: steps, solver, guidance, negative prompt."""

from dataclasses import dataclass, field

from mova_engine.config.diffusion import check_sigmas, check_solver
from mova_engine.config.model import MovaConfig
from mova_engine.data.text import flaw
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.schedule import Schedule, Steps
from mova_engine.errors import MovaError
from mova_engine.inference.first_block import FirstBlock
from mova_engine.inference.step_plan import StepPlan

# The default negative prompt of MOVA's own inference scripts, from the Wan project (Wan 2.1, Apache-2.0): garish,
# overexposed, static, blurred, subtitles, low quality, JPEG artefacts, deformed hands and faces.
REFERENCE_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(frozen=True)
class SampleSettings:
    """How clips are sampled. Raises MovaError for values that cannot be used together.

    steps: number of steps, whose noise levels the model's schedule gives. solver: one of `diffusion.solvers`.
    sigmas: noise levels of the video's steps instead, as models distilled to a few steps have them; no shift is applied
    to them. audio_sigmas: those of the audio; empty: the same; n times as many: the audio takes n steps in each of the
    video, on what the bridge read of it there. switch: how many of the video's steps the high-noise expert serves;
    None: those at and above the boundary. cache: the steps that reuse the video's velocity (`step_cache.planned`),
    or the rule by which they are found in the run; None: none.
    """

    steps: int = 50
    guidance: Guidance = field(default_factory=Guidance)
    negative_prompt: str = ""
    solver: str = "euler"
    sigmas: tuple[float, ...] = ()
    audio_sigmas: tuple[float, ...] = ()
    switch: int | None = None
    cache: StepPlan | FirstBlock | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise MovaError(f"steps must be at least 1, got {self.steps}")
        if self.negative_prompt and self.guidance.form == "none":
            raise MovaError("a negative prompt has no effect with guidance 'none'")
        if reason := flaw(self.negative_prompt):
            raise MovaError(f"the negative prompt {reason}")
        check_solver(self.solver)
        if self.sigmas:
            check_sigmas(self.sigmas, self.audio_sigmas or None, self.switch)
        elif self.audio_sigmas or self.switch is not None:
            raise MovaError("audio_sigmas and switch go with sigmas, the noise levels of the video")
        if self.audio_substeps > 1 and (self.solver != "euler" or self.cache is not None):
            raise MovaError(
                "several audio sigmas for each of the video's go with solver euler, whose video moves along one "
                "velocity meanwhile, and without a step cache, which plans such steps itself"
            )
        if isinstance(self.cache, StepPlan) and self.cache.steps != self.count:
            raise MovaError(f"the step cache was planned for {self.cache.steps} steps, this run has {self.count}")

    @property
    def first_block(self) -> float | None:
        """The threshold of the adaptive cache; None: none."""
        return self.cache.threshold if isinstance(self.cache, FirstBlock) else None

    @property
    def count(self) -> int:
        """Number of steps; of the audio's, where it takes several in each of the video."""
        return len(self.sigmas) * self.audio_substeps or self.steps

    @property
    def audio_substeps(self) -> int:
        """Steps of the audio in each of the video."""
        return len(self.audio_sigmas) // len(self.sigmas) if self.audio_sigmas else 1

    @property
    def reused(self) -> tuple[int, ...]:
        """The steps in which the audio tower runs alone, on the video of the step before."""
        if isinstance(self.cache, StepPlan):
            return self.cache.reused
        return tuple(step for step in range(self.count) if step % self.audio_substeps)

    def noise_levels(self, schedule: Schedule) -> Steps:
        """The noise levels of the steps, and which expert serves each. schedule: the model's."""
        if not self.sigmas:
            return schedule.inference(self.steps)
        return schedule.listed(self.sigmas, self.audio_sigmas or None, self.switch)


def default_settings(config: MovaConfig) -> SampleSettings:
    """A model's own sampling settings, which its folder states (`train.model_setup.model_config`)."""
    return SampleSettings(config.sampling.steps, Guidance(config.sampling.guidance))
