"""Every recommendation can be run: trainer or sampler understand its command, and it means what was planned."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from plan_page import CARDS, HOSTS, MODELS, PAGE, limited, memory_table, shown_table
from plan_page import TASKS as PLANNED_TASKS

from mova_engine.backend import get_backend
from mova_engine.config.memory import PLAIN, TASKS, MemoryConfig
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import TRAIN
from mova_engine.config.sample import SAMPLE
from mova_engine.config.train import TrainConfig
from mova_engine.distributed.processes import Launch
from mova_engine.inference import sampling_job as sampler
from mova_engine.plan.command_line import command, lines, unavailable
from mova_engine.plan.recipe import job_of, layout_as_set
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.hardware import hardware_names
from mova_engine.predict.job import IMPLEMENTATIONS, Job, Layout, PlannedRun, layout_of, precision_of
from mova_engine.predict.search import Plan, best, plan, rescue

SELECTIVE = PLAIN["lora"]
GRID = list(product(TASKS, ("mova-360p", "mova-720p"), hardware_names(), (1, 2, 8, 16, 64)))
# With a step that shares no factor with the lengths of the grid's axes, which therefore all come in.
USUAL = GRID[::13]
OURS = IMPLEMENTATIONS["ours"]
# How many plans one report shows.
SHOWN = 5


def _recommendations(task: str, model: str, name: str, devices: int) -> list[Plan]:
    job, hardware = Job(get_preset(model), task), calibrated(name)
    return best(job, devices, hardware)[:SHOWN] or rescue(job, devices, hardware, OURS)


def _split(words: list[str]) -> tuple[int, list[str]]:
    """Number of processes that a command starts, and the options of the engine's own command."""
    if words[0] == "mova":
        return 1, words[2:]
    at = words.index("-m")
    launcher = dict(zip(words[1:at:2], words[2:at:2], strict=True))
    return int(launcher.get("--nnodes", 1)) * int(launcher["--nproc-per-node"]), words[at + 2 :]


@cache
def _parsed(*words: str) -> TrainConfig:
    """Many a plan has the command of another one."""
    return TRAIN.parse(words)


def _check_training(one: Plan, recipe: str | None = None) -> None:
    run, (world, words) = one.run, _split(command(one, recipe))
    config = _parsed(*words)
    job, layout = run.job, layout_as_set(config, run.job.model.video.num_heads, world)
    assert world == run.layout.world and str(layout) == str(run.layout)
    assert config.memory == run.policy
    mesh = MeshShape(dp_shard=layout.data_parallel, ulysses=layout.context_parallel)
    assert config.clips_per_step(mesh) == run.clips
    assert precision_of(config.dtype) == job.precision and config.lora.rank == (
        job.lora_rank if job.task == "lora" else 0
    )
    assert (config.optim.ema > 0) == job.ema and (config.loader.encode == "online") == job.online
    # Whatever the folder was made for.
    assert config.clip.over(get_preset("nano").clip) == job.model.clip
    assert config.model.checkpoint is not None or config.model.preset == job.model.name
    assert config.model.bridge == ("dual_tower_bridge" in job.components or config.task == "audio")
    assert (config.task == "audio") == (job.components == ("audio_dit",))


def _check_sampling(one: Plan, monkeypatch) -> None:
    run, (world, words) = one.run, _split(command(one))
    model = run.job.model

    def opened(folder, clip, say, **_):
        return folder, replace(get_preset(model.name), clip=clip.over(get_preset("nano").clip))

    monkeypatch.setattr(sampler, "open_model", opened)
    monkeypatch.setattr(sampler, "get_backend", lambda name: get_backend("cpu"))
    monkeypatch.setattr(sampler, "default_backend", lambda: get_backend("cpu"))
    monkeypatch.setattr(sampler, "_work", lambda config, *_: [None] * (config.count or 1))
    config = SAMPLE.parse(words)
    read = sampler.read_job(config, Launch(rank=0, world=world))
    assert world == run.layout.world and str(layout_of(read.mesh, config.parallel.shard)) == str(run.layout)
    assert run.policy == config.memory
    assert read.clip == model.clip and len(read.work) == run.clips
    assert read.settings.guidance.evaluations == run.job.evaluations
    assert config.sequential_guidance == (run.job.sequential and run.layout.cfg == 1)
    assert config.dtype == {"bf16": "bfloat16", "fp32": "float32"}[run.job.precision]


def _walk(points, monkeypatch) -> set[tuple]:
    """Check all recommendations at these points; returns what came up: tasks, numbers of devices, policies."""
    seen = set()
    for task, model, name, devices in points:
        for one in _recommendations(task, model, name, devices):
            assert one.fits and not unavailable(one.run)
            if one.run.job.training:
                _check_training(one)
            else:
                _check_sampling(one, monkeypatch)
            seen |= {("task", task), ("devices", one.run.layout.world)}
            seen |= {(task, *setting) for setting in one.changes.items()}
    return seen


@pytest.mark.long
def test_recommendations_are_commands(monkeypatch):
    for axis in range(4):
        assert {point[axis] for point in USUAL} == {point[axis] for point in GRID}
    seen = _walk(USUAL, monkeypatch)
    assert {("task", task) for task in TASKS} <= seen and {("devices", n) for n in (1, 2, 8, 16, 64)} <= seen


@pytest.mark.long
def test_the_page_shows_the_table_of_memory():
    assert shown_table(PAGE.read_text(encoding="utf-8")) == memory_table(), "renew it: python tests/plan_page.py"


@pytest.mark.long
def test_the_table_of_memory_has_commands(monkeypatch):
    modes = set()
    for task, model, card, host in product(PLANNED_TASKS, MODELS, CARDS, HOSTS):
        one, would = limited(task, model, card, host)
        for fits in [one] if one is not None else [each.plan for each in would]:
            assert fits.fits and not unavailable(fits.run)
            if task == "lora":
                _check_training(fits)
            else:
                _check_sampling(fits, monkeypatch)
            modes.add((task, fits.run.policy.mode))
    assert {("inference", mode) for mode in ("resident", "expert", "stream", "disk")} <= modes
    assert {("lora", mode) for mode in ("stream", "disk")} <= modes


@pytest.mark.slow
def test_recommendations_are_commands_everywhere(monkeypatch):
    seen = _walk(GRID, monkeypatch)
    assert ("full", "optimizer", "host") in seen and ("lora", "weights", "host") in seen
    assert ("lora", "frozen", "fp8") in seen and ("inference", "weights", "host") in seen


@pytest.mark.parametrize(
    "job, layout, policy",
    [
        (Job(get_preset("nano"), "full", "fp32"), Layout(), MemoryConfig("none")),
        (Job(get_preset("nano"), "lora", "fp32", lora_rank=4), Layout(dp_replicate=2, shard=False), SELECTIVE),
        (
            Job(get_preset("mova-360p"), components=("audio_dit",)),
            Layout(dp_shard=8),
            MemoryConfig("full", optimizer="host"),
        ),
        (
            Job(get_preset("mova-360p"), components=("video_dit", "audio_dit"), online=True),
            Layout(dp_replicate=2, dp_shard=2, ring=2, ulysses=4),
            MemoryConfig("out", inputs="host"),
        ),
        (Job(get_preset("mova-720p"), clips=12), Layout(dp_shard=3, ring=4, ulysses=2), SELECTIVE),
    ],
)
def test_other_jobs_are_commands_too(job, layout, policy):
    _check_training(plan(PlannedRun(job, layout, policy), calibrated("h100-80gb")))


def test_clips_of_another_size_are_asked_for(monkeypatch):
    model = get_preset("mova-360p")
    model = replace(model, clip=replace(model.clip, frames=49, height=320, fps=16.0))
    hardware = calibrated("h200")
    _check_sampling(plan(PlannedRun(Job(model, "inference"), Layout(shard=False)), hardware), monkeypatch)
    _check_training(plan(PlannedRun(Job(model, "lora")), hardware))


@pytest.mark.parametrize("recipe", ["joint-phase3", "lora", "nano", "audio-pretrain"])
def test_a_plan_for_a_recipe_overrides_what_it_must(recipe):
    job = job_of(recipe)
    other = replace(job, model=replace(job.model, clip=replace(job.model.clip, frames=49, height=240)))
    for one in (job, other):
        layout = Layout(dp_replicate=2, shard=False)
        _check_training(plan(PlannedRun(one, layout, MemoryConfig("full")), calibrated("h100-80gb")), recipe)


def test_what_no_option_turns_on_has_no_command():
    job, hardware = Job(get_preset("mova-360p"), "lora"), calibrated("h100-80gb")
    for policy in (
        replace(SELECTIVE, expert="host"),
        MemoryConfig("none", weights="host"),
        MemoryConfig("none", inputs="host"),
    ):
        one = plan(PlannedRun(job, policy=policy), hardware)
        assert command(one) is None and "cannot be run" in unavailable(one.run)
    shared = PlannedRun(job, Layout(ulysses=2), replace(SELECTIVE, frozen="fp8"))
    assert "memory.frozen fp8 cannot be run: weights in fp8 are held whole" in unavailable(shared)
    theirs = PlannedRun(job, policy=MemoryConfig("full"), implementation=IMPLEMENTATIONS["reference"])
    assert "predicted only" in unavailable(theirs)


def test_a_long_command_is_one_for_the_shell():
    words = ["mova", "train", "--data", "my clips", *(f"--option-{i} {i}" for i in range(30))]
    shown = lines(words)
    assert len(shown) > 2 and all(len(line) <= 112 for line in shown)
    assert all(line.endswith(" \\") for line in shown[:-1]) and "--data 'my clips'" in shown[0]
