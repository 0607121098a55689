"""What the curriculum consists of: jobs, each a command of `mova`, and what each needs of others.

The main run is stage 1 (the audio tower alone) and the joint phases 1 to 3. Beside it stand the same runs without one
of their parts, at equal steps and seeds:

    without-tower      joint training from scratch; phase 1 takes the steps of stage 1 too
    without-phase1     phase 2 takes the steps of phase 1 too
    unfiltered         phases 2 and 3 on the clips of phase 1
    without-size-step  phase 3 on clips of phases 1 and 2's size
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.recipes import load_config

FILMS, HELDOUT = 48, 96
SEED = 0
PHASES = ("phase1", "phase2", "phase3")
ABLATIONS = ("without-tower", "without-phase1", "unfiltered", "without-size-step")
# Pixels of the clips' sides, of phases 1 and 2, and of phase 3.
SMALL, LARGE = 48, 64
# Seconds of a training step on a quiet core, by what is trained: they order the jobs and weigh what is left.
_STEP = {"tower": 0.02, SMALL: 0.08, LARGE: 0.13}
_START, _SAMPLE = 12.0, {SMALL: 25.0, LARGE: 35.0}


@dataclass(frozen=True)
class CurriculumJob:
    """A command. words: behind `mova`. needs: names of jobs that come first. seconds: about, on a quiet core. copied: a
    folder, and where a copy of it must be before the command starts.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    seconds: float = _START
    copied: tuple[Path, Path] | None = None


@dataclass(frozen=True)
class SampledRun:
    """Held-out clips that were sampled. name: of the folder. run: whose model. side: pixels; 0: sound alone."""

    name: str
    run: str
    side: int


# The main run after each stage, then the ablations. Phase 2 is sampled at the larger size too, which it never saw.
SAMPLED = (
    SampledRun("tower", "tower", 0),
    SampledRun("phase1", "phase1", SMALL),
    SampledRun("phase2", "phase2", SMALL),
    SampledRun("phase2-large", "phase2", LARGE),
    SampledRun("phase3", "phase3", LARGE),
    SampledRun("without-tower", "without-tower-phase3", LARGE),
    SampledRun("without-phase1", "without-phase1-phase3", LARGE),
    SampledRun("unfiltered-phase2", "unfiltered-phase2", SMALL),
    SampledRun("unfiltered", "unfiltered-phase3", LARGE),
    SampledRun("without-size-step", "without-size-step", LARGE),
    SampledRun("without-size-step-small", "without-size-step", SMALL),
)


@dataclass(frozen=True)
class CurriculumScale:
    """How much of everything: 1 is the whole, less a trial."""

    steps: float = 1.0
    films: int = FILMS
    heldout: int = HELDOUT

    @classmethod
    def of(cls, steps: float) -> "CurriculumScale":
        """The clips of a trial are fewer with its steps."""
        share = min(1.0, steps)
        return cls(steps, max(3, round(FILMS * share)), max(6, 6 * round(HELDOUT * share / 6)))

    def steps_of(self, *recipes: str) -> int:
        """The steps of these recipes together."""
        return max(2, round(self.steps * sum(load_config(recipe).steps for recipe in recipes)))


def jobs(work: Path, scale: CurriculumScale) -> tuple[CurriculumJob, ...]:
    """All jobs, in an order in which each comes after what it needs."""
    return (*_data(work, scale), *_trainings(work, scale), *_samples(work, scale))


def clips_of(work: Path, phase: str) -> Path:
    """The list of the clips that a phase trains on."""
    return work / "clips" / phase


def _data(work: Path, scale: CurriculumScale) -> Iterator[CurriculumJob]:
    films, held = str(work / "films"), str(work / "heldout")
    yield CurriculumJob("films", ("nano", "films", films, "--films", str(scale.films), "--seed", str(SEED)))
    of_films = ("--clips", str(scale.heldout), "--split", "heldout", "--scale", "2", "--seed", str(SEED))
    yield CurriculumJob("heldout", ("nano", "clips", held, *of_films))

    def curate(phase: str, recipe: str) -> tuple[str, ...]:
        out = str(clips_of(work, phase))
        return ("curate", f"{films}/metadata.jsonl", "--recipe", recipe, "--out", out, "--workers", "2")

    seconds = 90 * scale.films / FILMS + _START
    yield CurriculumJob("clips-phase1", curate("phase1", "curate-nano"), ("films",), seconds)
    # What phase 1's run measured is in its folder: other filters over a copy of it measure nothing.
    for phase in PHASES[1:]:
        copied = clips_of(work, "phase1"), clips_of(work, phase)
        yield CurriculumJob(f"clips-{phase}", curate(phase, f"curate-nano-{phase}"), ("clips-phase1",), _START, copied)


def _trainings(work: Path, scale: CurriculumScale) -> Iterator[CurriculumJob]:
    def training(
        name: str, recipe: str, clips: str, *options: str, after: str = "", also: str = "", side: int = SMALL
    ) -> CurriculumJob:
        steps = scale.steps_of(f"nano-{recipe}", *([f"nano-{also}"] if also else []))
        words = ["train", "--recipe", f"nano-{recipe}", "--data", str(clips_of(work, clips)), "--out", str(work / name)]
        words += ["--steps", str(steps), "--seed", str(SEED), "--device", "cpu", "--threads", "1", *options]
        words += ["--loader.cache", str(work / "cache")]
        needs = (f"clips-{clips}", *([after] if after else []))
        each = _STEP["tower"] if recipe == "tower" else _STEP[side]
        return CurriculumJob(name, tuple(words), needs, _START + steps * each)

    def start(name: str) -> tuple[str, str]:
        return "--model.checkpoint", str(work / name)

    tower = ("--model.audio-from", str(work / "tower"))
    yield training("without-tower-phase1", "phase1", "phase1", also="tower")
    yield training("tower", "tower", "phase1")
    yield training("phase1", "phase1", "phase1", *tower, after="tower")
    yield training("without-phase1-phase2", "phase2", "phase2", *tower, after="tower", also="phase1")
    for before, own in (("", ""), ("without-tower-", "without-tower-")):
        yield training(f"{own}phase2", "phase2", "phase2", *start(f"{before}phase1"), after=f"{before}phase1")
    yield training("unfiltered-phase2", "phase2", "phase1", *start("phase1"), after="phase1")
    for own, clips in (
        ("", "phase3"),
        ("without-tower-", "phase3"),
        ("without-phase1-", "phase3"),
        ("unfiltered-", "phase1"),
    ):
        before = f"{own}phase2"
        yield training(f"{own}phase3", "phase3", clips, *start(before), after=before, side=LARGE)
    small = ("--clip.height", str(SMALL), "--clip.width", str(SMALL))
    yield training("without-size-step", "phase3", "phase3", *start("phase2"), *small, after="phase2")


def _samples(work: Path, scale: CurriculumScale) -> Iterator[CurriculumJob]:
    for sampled in SAMPLED:
        words = ["sample", "--checkpoint", str(work / sampled.run), "--prompts", str(work / "heldout")]
        words += ["--out", str(sampled_folder(work, sampled)), "--seed", str(SEED), "--guidance", "none"]
        words += ["--device", "cpu", "--threads", "1"]
        if sampled.side:
            words += ["--clip.height", str(sampled.side), "--clip.width", str(sampled.side)]
        else:
            words += ["--audio-alone"]
        seconds = _START + (_SAMPLE[sampled.side] if sampled.side else 3) * scale.heldout / HELDOUT
        yield CurriculumJob(f"sample-{sampled.name}", tuple(words), (sampled.run, "heldout"), seconds)


def sampled_folder(work: Path, sampled: SampledRun) -> Path:
    """Where a model's clips lie."""
    return work / "sampled" / sampled.name
