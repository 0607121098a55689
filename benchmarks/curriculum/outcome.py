"""The result: figures of every sampled model, and what each stage brings beside the same compute without it."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.curriculum.figures import SampledClip, differences, summary
from benchmarks.curriculum.stages import PHASES, SEED, CurriculumScale, clips_of
from mova_engine.config.recipes import load_config
from mova_engine.scores.bounce_sync import Figure, plain

# Stage -> what it is, and the folders of samples with it and without it.
COMPARED = {
    "stage 1": ("the audio tower alone first, against as many more steps of phase 1", "phase3", "without-tower"),
    "phase 1": (
        "loose clips at audio shift 1 first, against as many more steps of phase 2",
        "phase3",
        "without-phase1",
    ),
    "filters, after phase 2": ("filtered clips, against those of phase 1", "phase2", "unfiltered-phase2"),
    "filters, after phase 3": ("the best clips, against those of phase 1", "phase3", "unfiltered"),
    "phase 3": ("its steps on the best clips in larger pictures, against stopping", "phase3", "phase2-large"),
    "size step": ("phase 3 at 64x64, against 48x48, sampled at 64x64", "phase3", "without-size-step"),
}
# Of each figure: whether more of it is better.
MEASURES = {"f1": True, "pitch": True, "distance": False, "silent": False}


def outcome_of(
    work: Path,
    scale: CurriculumScale,
    sampled: Mapping[str, Sequence[SampledClip]],
    bound: Sequence[SampledClip],
    seconds: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """All facts of the result file. bound: held-out clips through the codec. seconds: as of `JobBoard`."""
    figures = {name: summary(clips) for name, clips in {**sampled, "codec": bound}.items()}
    brings = {}
    for stage, (about, own, other) in COMPARED.items():
        found = differences(sampled[own], sampled[other])
        brings[stage] = {
            "about": about,
            "with": own,
            "without": other,
            "difference": plain(found),
            "verdict": verdict(found),
        }
    recipes = ("nano-tower", *(f"nano-{phase}" for phase in PHASES))
    return {
        "seed": SEED,
        "steps_scale": scale.steps,
        "films": scale.films,
        "heldout_clips": scale.heldout,
        "steps": {recipe: scale.steps_of(recipe) for recipe in recipes},
        "settings": {recipe: _settings(recipe) for recipe in recipes},
        "curated": {phase: curated(work, phase) for phase in PHASES},
        "figures": plain(figures),
        "brings": brings,
        "seconds": dict(seconds),
    }


def verdict(found: Mapping[str, Figure]) -> str:
    """What the intervals of the differences allow to say, in words."""
    names = {"f1": "sync", "pitch": "pitch", "distance": "clicks", "silent": "silence"}
    better, worse = [], []
    for name, more in MEASURES.items():
        figure = found[name]
        if math.isnan(figure.low) or figure.low <= 0 <= figure.high:
            continue
        (better if (figure.value > 0) == more else worse).append(names[name])
    told = [f"better: {', '.join(better)}"] if better else []
    told += [f"worse: {', '.join(worse)}"] if worse else []
    return "; ".join(told) or "brings nothing that these clips can show"


def curated(work: Path, phase: str) -> dict[str, Any]:
    """How many clips a phase trains on, what dropped the others, and what the films' truth says of the kept ones."""
    folder = clips_of(work, phase)
    kept = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    truths = {path.stem: json.loads(path.read_text()) for path in (work / "films").glob("film_*.json")}
    sounds: Counter[str] = Counter()
    at_scene = 0
    for row in kept:
        scenes = truths[Path(row["video_path"]).stem]["scenes"]
        scene = next(each for each in reversed(scenes) if each["start"] <= row["start"] + 1e-3)
        sounds["card" if scene["card"] else scene["sound"]] += 1
        at_scene += abs(scene["start"] - row["start"]) < 1e-3
    scenes = sum(not scene["card"] for truth in truths.values() for scene in truth["scenes"])
    funnel = json.loads((folder / "funnel.json").read_text())
    return {
        "scenes": scenes,
        "kept": len(kept),
        "begin_with_a_scene": at_scene,
        "sounds": dict(sounds.most_common()),
        "funnel": funnel,
    }


def _settings(recipe: str) -> dict[str, Any]:
    config = load_config(recipe)
    clip, optim, diffusion = config.clip, config.optim, config.diffusion
    return {
        "size": None if config.task == "audio" else f"{clip.width}x{clip.height}",
        "batch": config.loader.batch,
        "lr": optim.lr,
        "bridge_lr": optim.bridge_lr,
        "video_shift": None if config.task == "audio" else diffusion.video_shift,
        "audio_shift": diffusion.audio_shift,
        "text_dropout": diffusion.text_dropout,
        "audio_weight": None if config.task == "audio" else diffusion.audio_weight,
    }
