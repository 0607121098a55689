"""Plans under limits of the device's and the host's memory: they keep them, or say what would, which then does."""

import re
from dataclasses import replace
from importlib import resources
from itertools import product

import pytest

from mova_engine.config.byte_sizes import parse_bytes, parse_rate
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import load_config
from mova_engine.errors import MovaError
from mova_engine.plan.recipe import job_of
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.hardware import DISK
from mova_engine.predict.job import IMPLEMENTATIONS, Job, Layout, PlannedRun
from mova_engine.predict.memory_use import memory
from mova_engine.predict.remedies import remedies
from mova_engine.predict.search import fitting, plan
from mova_engine.predict.step_traffic import layer_bytes, step_traffic

M360 = get_preset("mova-360p")
CARD, CPU = calibrated("rtx4090"), calibrated("cpu")
GIB = 2**30
SMALL, LARGE = (8, 12, 24, 48, 96), (8, 32, 64, 128)


@pytest.mark.parametrize("task", ["inference", "lora"])
@pytest.mark.parametrize("vram, ram", list(product(SMALL, LARGE)))
def test_a_plan_keeps_the_limits_or_says_what_fits(task, vram, ram):
    job, hardware = Job(M360, task, sequential=True), CARD.with_limits(vram=vram * GIB, ram=ram * GIB)
    found = fitting(job, Layout(), hardware, IMPLEMENTATIONS["ours"])
    for one in found[:1]:
        assert one.memory.total < vram * GIB and one.memory.on_host < ram * GIB
    if not found:
        would = list(remedies(job, Layout(), hardware, {}))
        assert would and all(one.words and one.plan.fits for one in would)


def test_tiles_are_planned_where_nothing_fits_without():
    """A short clip at 720p, whose decoding takes more than denoising; not for one that several make together."""
    model = get_preset("mova-720p")
    job = Job(replace(model, clip=replace(model.clip, frames=33)), "inference", sequential=True)
    ours = IMPLEMENTATIONS["ours"]
    small, large = (CARD.with_limits(vram=vram, ram=64e9) for vram in (10e9, 16e9))
    found = fitting(job, Layout(), small, ours)
    assert {one.run.policy.vae for one in found} == {"tiles"}
    whole = memory(replace(found[0].run, policy=replace(found[0].run.policy, vae="whole")), CARD.machine)
    assert whole.peak == "decode video" and whole.total > small.budget > 2 * found[0].memory.stages["decode video"]
    assert {one.run.policy.vae for one in fitting(job, Layout(), large, ours)} == {"whole"}
    assert fitting(job, Layout(), small, ours, {"vae": "whole"}) == []
    shared = Layout(ulysses=2, shard=False)
    assert all(one.run.policy.vae == "whole" for one in fitting(job, shared, small, ours))


@pytest.mark.parametrize(
    "recipe, device, vram, ram, says",
    [
        ("lora-24gb", "rtx4090", 24e9, 32e9, "{card} GB on the card, {host} GB on the host, and 87 s a clip"),
        ("lora-24gb", "910a2", 32e9, 32e9, "On an NPU it is the same {card} GB"),
        ("lora-80gb", "h100-80gb", 80e9, 96e9, "{card} GB on the card, {host} GB on the host, and 15.8 s a clip"),
        ("lora-80gb", "910a2", 68e9, 96e9, "On an NPU it is the same {card} GB, of the 64"),
    ],
)
def test_presets_are_what_the_search_finds_for_their_cards(recipe, device, vram, ram, says):
    """And need what their comments say."""
    hardware = calibrated(device).with_limits(vram=vram, ram=ram)
    best = fitting(job_of(recipe), Layout(), hardware, IMPLEMENTATIONS["ours"])[0]
    assert best.run.policy == load_config(recipe).memory
    text = resources.files("mova_engine.config").joinpath("recipes", f"{recipe}.yaml").read_text()
    card, host = f"{best.memory.total / 1e9:.1f}", f"{best.memory.on_host / 1e9:.1f}"
    assert says.format(card=card, host=host) in re.sub(r"\s*\n#?\s*", " ", text)
    seconds = re.search(r"([\d.]+) s a clip", says)
    assert seconds is None or best.seconds_per_clip == pytest.approx(float(seconds[1]), rel=0.01)


def test_the_host_holds_what_does_not_fit_beside_it():
    """By the host: 128 GiB hold all weights, 64 none, which then come from files at the same speed; 32 GiB do not hold
    attention's results either, which are then computed again.
    """
    for ram, weights, saved, seconds in (
        (128, "host", "host", 76.6),
        (64, "files", "host", 76.6),
        (32, "files", "device", 87.5),
    ):
        hardware = CARD.with_limits(vram=24 * GIB, ram=ram * GIB)
        best = fitting(Job(M360, "lora"), Layout(), hardware, IMPLEMENTATIONS["ours"])[0]
        assert (best.run.policy.weights, best.run.policy.saved) == (weights, saved)
        assert best.seconds_per_clip == pytest.approx(seconds, abs=0.5)
    assert not any(p.run.policy.weights == "files" for p in fitting(Job(M360), Layout(), CARD, IMPLEMENTATIONS["ours"]))


def test_several_devices_share_their_host():
    policy = MemoryConfig("full", inputs="host", weights="host")
    two = PlannedRun(Job(M360, "lora"), Layout(dp_replicate=2, shard=False), policy)
    held = memory(two).on_host
    assert plan(two, CARD.with_limits(ram=2.1 * held / 0.9)).fits
    assert not plan(two, CARD.with_limits(ram=1.9 * held / 0.9)).fits


@pytest.mark.parametrize("idle, parts", [("host", {"weights", "text encoder"}), ("files", set()), ("device", set())])
def test_what_waits_on_the_host_is_counted(idle, parts):
    found = memory(PlannedRun(Job(M360, "inference"), policy=MemoryConfig(idle=idle)))
    assert parts <= found.host.keys() and bool(parts) == bool(found.host)
    if parts:
        assert found.on_host == pytest.approx(77.7e9, rel=0.01)
    turns = memory(PlannedRun(Job(M360, "inference"), policy=MemoryConfig(idle=idle, expert="host")))
    # Both experts have copies on the host while one is on the device.
    assert ("weights" in turns.host) == (idle != "files")


def test_a_cpu_holds_each_part_once():
    run = PlannedRun(Job(M360, "inference"))
    found = memory(run, CPU.machine)
    assert found.shared == pytest.approx(sum(found.host.values()) + found.device["working set of a layer"])
    lean = memory(PlannedRun(Job(M360, "inference"), policy=MemoryConfig(weights="files", idle="files")), CPU.machine)
    # Of pictures there is on the host what H.264 holds, and four.
    assert lean.shared == lean.total < 0.2 * found.shared and lean.on_host == 352 * 640 * (230 + 12)


def test_layers_from_files_take_the_longer_of_reading_and_computing():
    run = PlannedRun(Job(M360, "inference", sequential=True), policy=MemoryConfig(weights="files"))
    traffic = step_traffic(run)
    assert traffic.from_files == layer_bytes(run, used=True) and traffic.from_host == 0, "both evaluations share them"
    quick, slow = plan(run, CARD).prediction, plan(run, CARD.with_limits(disk=0.5e9)).prediction
    assert "offload" in quick.hidden and quick.parts["offload"] == 0
    reading = traffic.from_files / 0.5e9 + traffic.from_files / CARD.host_rate
    assert slow.seconds == pytest.approx(reading) and slow.seconds > quick.seconds
    assert CARD.disk_bandwidth == DISK


def test_quantised_weights_are_counted():
    def stored(frozen, **settings):
        policy = MemoryConfig("full", frozen=frozen, **settings)
        return memory(PlannedRun(Job(M360, "lora"), policy=policy))

    bf16, int8, nf4 = (stored(frozen, weights="host").host["weights"] for frozen in ("activations", "int8", "nf4"))
    assert int8 / bf16 == pytest.approx((1 + 4 / 5120) / 2) and nf4 / bf16 == pytest.approx(0.51587 / 2, rel=1e-4)
    # What is outside of layers stays as it is.
    outside = stored("nf4", weights="host").device["weights outside of layers"]
    assert outside == stored("activations", weights="host").device["weights outside of layers"] > 0.9e9
    here = stored("nf4").device
    assert here["weights"] + here["second video expert"] == pytest.approx(17.6e9, rel=0.01)


def test_sizes_are_typed_with_their_unit():
    assert [parse_bytes(text, "--ram") for text in ("12GB", "12GiB", "12000MB", "0.5 TB")] == [
        12_000_000_000,
        12 * GIB,
        12_000_000_000,
        500_000_000_000,
    ]
    assert parse_rate("3GB/s", "--disk") == 3_000_000_000


@pytest.mark.parametrize(
    "text, says",
    [
        ("12", "write a number and its unit"),
        ("12G", "write a number and its unit"),
        ("-1GB", "is no size"),
        ("0GB", "no machine's memory"),
        ("1kB", "no machine's memory"),
        ("900TB", "no machine's memory"),
    ],
)
def test_absurd_sizes_are_refused(text, says):
    with pytest.raises(MovaError, match=f"^--vram: .*{says}"):
        parse_bytes(text, "--vram")
    with pytest.raises(MovaError, match="^--disk"):
        parse_rate(text, "--disk")
