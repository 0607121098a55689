"""What is recommended fits, beats its rivals, and changes no more than it must."""

from dataclasses import replace
from itertools import pairwise, product

import pytest

from mova_engine.config.memory import PLAIN
from mova_engine.config.model import get_preset
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.job import IMPLEMENTATIONS, Job, Layout
from mova_engine.predict.memory_use import memory
from mova_engine.predict.search import (
    CHOICES,
    MOST_MESHES,
    best,
    fitting,
    layouts,
    leanest,
    plan,
    policies,
    rescue,
    smallest_change,
    thinned,
)

SELECTIVE = PLAIN["lora"]
M360, M720 = get_preset("mova-360p"), get_preset("mova-720p")
OURS = IMPLEMENTATIONS["ours"]
RUNS = [
    (Job(M360, "lora"), 1, "h100-80gb"),
    (Job(M360, "lora", clips=2), 8, "910a2"),
    (Job(M720, "full", clips=1), 16, "h100-80gb"),
    (Job(M360, "lora"), 2, "rtx4090"),
    (Job(M360, "inference"), 4, "h200"),
    (Job(M360, "full"), 8, "a100-80gb"),
    (Job(get_preset("bench-mid"), "full", "fp32"), 1, "cpu"),
]


@pytest.mark.parametrize("job, devices, name", RUNS)
def test_recommendations_fit_and_are_ranked(job, devices, name):
    plans = best(job, devices, calibrated(name))
    assert plans
    for one in plans:
        assert one.fits and one.run.layout.world == devices and one.run.misfit() is None
        assert one.prediction.clips == (job.clips or one.run.layout.data_parallel)
    assert plans[0].seconds_per_clip <= 1.05 * min(one.seconds_per_clip for one in plans)


@pytest.mark.parametrize("job, devices, name", RUNS)
def test_the_smallest_change_is_the_smallest(job, devices, name):
    hardware = calibrated(name)
    layout = best(job, devices, hardware)[0].run.layout
    least = smallest_change(job, layout, hardware, OURS)
    assert least.fits
    fewer = [p for p in policies(job, layout, hardware, OURS) if len(p.changes(SELECTIVE)) < len(least.changes)]
    plain = plan(least.run, hardware)
    assert not any(memory(type(plain.run)(job, layout, p, OURS)).total <= hardware.budget for p in fewer)


def test_the_choices_for_one_card_are_those_that_the_trainer_has():
    hardware = calibrated("h100-80gb")
    fits = [one.changes for one in fitting(Job(M360, "lora"), Layout(), hardware, OURS)]
    assert {"frozen": "fp8", "inputs": "host"} in fits
    assert {"weights": "host"} in fits and not any("expert" in one for one in fits)
    assert not any("weights" in one and one.get("checkpointing") == "none" for one in fits)


def test_the_meshes():
    found = {str(one) for one in layouts(Job(M720, "full", clips=1), 16, 8, OURS)}
    mesh = "dp_replicate 1 x dp_shard 1 x ring 2 x ulysses 8"
    assert found == {f"{mesh}, weights in 16 parts", f"{mesh}, all weights on each"}
    paper = Layout(dp_shard=2, ulysses=4)
    assert paper in list(layouts(Job(M360, "lora", clips=2), 8, 8, OURS))
    assert best(Job(M360, "lora", clips=2), 8, calibrated("910a2"), layout=paper)
    theirs = list(layouts(Job(M360, "lora"), 8, 8, IMPLEMENTATIONS["reference"]))
    assert theirs and all(12 % one.ulysses == 0 for one in theirs)
    sampled = layouts(Job(M360, "inference"), 4, 8, OURS)
    assert Layout(ulysses=2, cfg=2) in sampled and Layout(ulysses=2, cfg=2, shard=False) in sampled
    whole = layouts(Job(M360, "inference"), 4, 8, IMPLEMENTATIONS["reference"])
    assert whole and not any(one.shard for one in whole)
    copies = [one for one in layouts(Job(M360, "full"), 16, 8, OURS) if one.dp_replicate > 1 and one.shard]
    assert copies and all(one.dp_shard * one.context_parallel % 8 == 0 for one in copies)


# The number of up to ten million with the most divisors, a prime, and a clip for each of few groups.
@pytest.mark.parametrize("devices, clips", [(8_648_640, None), (9_999_991, None), (8_648_640, 12), (100_000, None)])
def test_any_number_of_devices_has_few_meshes(devices, clips):
    found = layouts(Job(M360, "full", clips=clips), devices, 8, OURS)
    assert 1 < len(found) <= MOST_MESHES and len(set(found)) == len(found)
    assert all(one.world == devices for one in found)
    assert all(clips is None or clips % one.data_parallel == 0 for one in found)
    shared = {one.context_parallel for one in found}
    assert max(shared) == devices
    assert min(shared) == devices // (clips or devices)


def test_thinned_meshes_keep_the_ends_and_represent_the_rest():
    everything = list(layouts(Job(M360, "full"), 72, 1, OURS))
    found = thinned(everything, 2)
    assert thinned(everything, 1) == everything and len(found) < len(everything)
    for one in everything:
        near = [other for other in found if other.context_parallel <= one.context_parallel < 2 * other.context_parallel]
        assert near or one.context_parallel == max(other.context_parallel for other in found)
    assert {one.dp_replicate for one in found if one.context_parallel == 1} == {1, 2, 4, 8, 18, 36, 72}


def test_the_longest_clip_that_fits_is_found_however_long_the_one_asked_for():
    hardware = calibrated("rtx4090")
    hardware = replace(hardware, memory=60e9)
    # A clip of another length is asked for where the sampler is.
    clip = M720.clip
    long = replace(M720, clip=replace(clip, frames=clip.frames + 4000))
    short = rescue(Job(long, "inference"), 1, hardware, OURS)[-1]
    longer = replace(M720, clip=replace(clip, frames=clip.frames + 160_000))
    found = rescue(Job(longer, "inference"), 1, hardware, OURS)[-1]
    assert found.run.job.model.clip.frames == short.run.job.model.clip.frames


def test_policies_leave_out_what_has_no_meaning():
    for job, name in product([Job(M360, task) for task in ("full", "lora", "inference")], ["cpu", "910a2", "rtx4090"]):
        hardware = calibrated(name)
        found = list(policies(job, Layout(), hardware, OURS))
        assert found and len(set(found)) == len(found)
        fp8 = any(policy.frozen == "fp8" for policy in found)
        assert fp8 == (name == "rtx4090" and job.task == "lora")
        away = any("host" in (p.inputs, p.weights, p.optimizer, p.expert) for p in found)
        assert away == (name != "cpu")
        assert not any(policy.unavailable(job.task, sharded=False) for policy in found)
        planned = list(policies(job, Layout(), hardware, OURS, planned=True))
        # Layers that come one by one need checkpointing, trained weights do not leave one device.
        more = {"inference": False, "lora": True, "full": name != "cpu"}[job.task]
        assert set(found) <= set(planned) and (len(planned) > len(found)) == more
    assert all(set(values) >= {getattr(SELECTIVE, name)} for name, values in CHOICES.items())


def test_where_nothing_fits_the_rescue_does():
    job, hardware = Job(M720, "lora"), calibrated("rtx4090")
    assert not best(job, 1, hardware)
    assert leanest(job, 1, hardware, OURS).memory.total > hardware.budget
    more, shorter = rescue(job, 1, hardware, OURS)
    assert more.fits and more.run.layout.world == 4
    assert shorter.fits and shorter.run.policy.weights == "host", "layers come one by one"
    long = replace(M720, clip=replace(M720.clip, frames=2001))
    _, shorter = rescue(Job(long, "inference"), 1, replace(hardware, memory=60e9), OURS)
    clip = shorter.run.job.model.clip
    assert shorter.fits and shorter.run.layout.world == 1 and 17 <= clip.frames < 2001 and clip.frames % 4 == 1


def test_a_clip_on_more_devices_is_quicker_and_needs_less_of_each():
    hardware, job = calibrated("h100-80gb"), Job(M360, "inference")
    seconds = [best(job, devices, hardware)[0].prediction.seconds for devices in (1, 2, 4, 8)]
    assert all(more < 0.95 * fewer for fewer, more in pairwise(seconds))
