"""The command line of the trainer or sampler that runs a plan.

Words in capitals are placeholders that the user must replace: FOLDER a model folder, CLIPS a folder of clips, TEXT a
prompt, PROMPTS a file or folder of them, HOST the first machine.
"""

import shlex
from dataclasses import replace

from mova_engine.config.memory import MemoryConfig
from mova_engine.config.mesh import largest_ulysses
from mova_engine.config.model import MovaConfig
from mova_engine.predict.hardware import Hardware
from mova_engine.predict.job import DTYPE_NAMES, Job, PlannedRun, sharded
from mova_engine.predict.search import Plan

_WIDTH, _INDENT = 108, 4
# Of all released models and recipes.
_FPS = 24


def unavailable(run: PlannedRun) -> str | None:
    """The reason why no command line runs this plan, as text; None if one does."""
    if run.implementation.name != "ours":
        return f"implementation '{run.implementation.name}' is predicted only"
    for name, reason in run.policy.unavailable(run.job.task, sharded(run.layout) > 1).items():
        return f"memory.{name} {getattr(run.policy, name)} cannot be run: {reason}"
    return None


def memory_words(policy: MemoryConfig, base: MemoryConfig) -> list[str]:
    """The options that turn the settings `base` into `policy`."""
    return [word for name, value in policy.changes(base).items() for word in (f"--memory.{name}", value)]


def command(plan: Plan, recipe: str | None = None) -> list[str] | None:
    """The words of the command that runs a plan; None if none does. recipe: the training recipe that the plan was made
    for.
    """
    run = plan.run
    if unavailable(run):
        return None
    device = ["--device", "cpu"] if plan.hardware.host_bandwidth is None else []
    if run.job.training:
        return [*_launcher(run, plan.hardware, "train"), *_training(run, recipe), *device]
    return [*_launcher(run, plan.hardware, "inference"), *_sampling(run), *device]


def lines(found: list[str]) -> list[str]:
    """A command for a shell, wrapped over several lines. An option and its value stay on one line."""
    pieces: list[str] = []
    for word in map(shlex.quote, found):
        if pieces and not word.startswith("-") and pieces[-1].startswith("-") and " " not in pieces[-1]:
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    out, line = [], ""
    for piece in pieces:
        if line and len(line) + 1 + len(piece) > _WIDTH - _INDENT:
            out.append(line)
            line = ""
        line += f" {piece}" if line else piece
    return [*(f"{' ' * _INDENT}{text} \\" for text in out), f"{' ' * _INDENT}{line}"]


def _launcher(run: PlannedRun, hardware: Hardware, module: str) -> list[str]:
    """torchrun's words for several processes, on as few machines as possible; the same on each machine."""
    devices, each = run.layout.world, hardware.link.devices
    if devices == 1:
        return ["mova", {"train": "train", "inference": "sample"}[module]]
    nodes = next(n for n in range(1, devices + 1) if devices % n == 0 and devices // n <= each)
    several = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"] if nodes > 1 else []
    return ["torchrun", *several, "--nproc-per-node", str(devices // nodes), "-m", f"mova_engine.{module}"]


def _recipe(job: Job) -> str:
    """The recipe that is most similar to a job."""
    released = job.model.video_codec == "wan"
    if job.task == "lora":
        return "lora" if released else "lora-nano"
    if job.components == ("audio_dit",):
        return "audio-pretrain"
    if not released or "dual_tower_bridge" not in job.components:
        return "nano"
    return "joint-phase3" if job.model.name == "mova-720p" else "joint-phase2"


def _training(run: PlannedRun, recipe: str | None) -> list[str]:
    job, layout, policy = run.job, run.layout, run.policy
    found = [
        "--recipe",
        recipe or _recipe(job),
        *_weights(job),
        "--data",
        "CLIPS",
        "--dtype",
        DTYPE_NAMES[job.precision],
    ]
    if job.task == "lora":
        found += ["--lora.rank", str(job.lora_rank)]
    elif recipe is None:
        found += ["--optim.ema", "0"]
    if job.fp8:
        found += ["--fp8.products", "device"]
    if job.moments != "float32":
        found += ["--optim.moments", job.moments]
    if job.muon is not None:
        found += ["--optim.name", "muon", "--optim.newton-schulz-steps", str(job.muon.newton_schulz_steps)]
        found += ["--optim.muon-every", str(job.muon.every)]
        if job.muon.precision is not None:
            found += ["--optim.newton-schulz-dtype", DTYPE_NAMES[job.muon.precision]]
    if job.online:
        found += ["--loader.encode", "online"]
    found += ["--loader.batch", "1", "--global-batch-size", str(run.clips)]
    found += ["--memory.checkpointing", policy.checkpointing]
    said = MemoryConfig(policy.checkpointing)
    if job.task == "full" and "dual_tower_bridge" in job.components:
        # Recipes of joint training have a value of their own.
        found += ["--memory.prefetch", policy.prefetch]
        said = replace(said, prefetch=policy.prefetch)
    found += memory_words(policy, said)
    # One process is what the recipes of adapters are for; others may ask for several.
    if layout.world > 1 or recipe is not None or job.task == "full":
        found += [*_shared(run), "--parallel.shard" if sharded(layout) > 1 else "--parallel.no-shard"]
    return found + (["--parallel.replicate", str(layout.dp_replicate)] if _copied(run) else [])


def _weights(job: Job) -> list[str]:
    """The options for weights, sizes and codecs."""
    name = job.model.name
    whole = "dual_tower_bridge" in job.components
    if job.task == "lora" or (whole and job.model.video_codec == "wan"):
        return ["--model.checkpoint", "FOLDER", *_clip(job.model)]
    codecs = ["--model.codecs", "FOLDER"] if job.model.video_codec == "wan" else []
    bridge = ["--model.no-bridge"] if job.components == ("video_dit", "audio_dit") else []
    return ["--model.preset", name, *_clip(job.model), *codecs, *bridge]


def _clip(model: MovaConfig) -> list[str]:
    """All options of a clip's size, so that the recipe's or folder's own size has no effect."""
    clip = model.clip
    sizes = {"frames": clip.frames, "height": clip.height, "width": clip.width}
    sizes |= {"fps": f"{clip.fps:g}"} if clip.fps != _FPS else {}
    return [word for name, value in sizes.items() for word in (f"--clip.{name}", str(value))]


def _sampling(run: PlannedRun) -> list[str]:
    job, layout = run.job, run.layout
    clips = layout.data_parallel
    what = ["--prompt", "TEXT"] if clips == 1 else ["--prompts", "PROMPTS", "--count", str(clips)]
    found = ["--checkpoint", "FOLDER", *_clip(job.model), *what, "--dtype", DTYPE_NAMES[job.precision]]
    found += ["--guidance", "text", *(["--sequential-guidance"] if job.sequential and layout.cfg == 1 else [])]
    found += () if job.kept is None else job.kept.words
    found += [*memory_words(run.policy, MemoryConfig()), *_shared(run)]
    found += ["--parallel.cfg", str(layout.cfg)] if layout.cfg > 1 else []
    found += ["--parallel.shard"] if sharded(layout) > 1 else []
    return found + (["--parallel.replicate", str(layout.dp_replicate)] if _copied(run) else [])


def _copied(run: PlannedRun) -> bool:
    """Whether there are several copies of divided weights."""
    return run.layout.dp_replicate > 1 and sharded(run.layout) > 1


def _shared(run: PlannedRun) -> list[str]:
    """Options that say how processes share clips; always given for training, where the recipe may have other values."""
    layout = run.layout
    if layout.context_parallel == 1 and not run.job.training:
        return []
    found = ["--parallel.context-parallel", str(layout.context_parallel)]
    usual = largest_ulysses(layout.context_parallel, run.job.model.video.num_heads)
    return found + (["--parallel.ulysses", str(layout.ulysses)] if layout.ulysses != usual else [])
