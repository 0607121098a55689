"""Runs with `fp8.products`: near those without, to the bit where they go on, with layers kept out by the slack."""

import json

import pytest
import torch

from mova_engine.config.recipes import load_config
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_tensors
from mova_engine.models.fp8_products import COMPARED
from mova_engine.train.metrics import read_metrics

EMULATED = {"products": "emulated"}


def losses(run):
    return [row["loss"] for row in read_metrics(run.config.folder / "metrics.jsonl") if "loss" in row]


def layers(run):
    return json.loads((run.config.folder / "fp8.json").read_text())["layers"]


def masters(run, step):
    found, _ = read_tensors(run.config.folder / "checkpoints" / f"step-{step:06d}" / "training" / "master.safetensors")
    return found


def test_a_run_is_near_one_without_and_says_how_far_products_are_off(small, ran):
    plain, fp8 = ran(small("plain")), ran(small("fp8", fp8=EMULATED))
    assert fp8.status == 0 and "products in fp8, emulated: 28 layers\n" in fp8.said
    # Behind weights that are zero there are no gradients to compare: in the first step nothing is.
    assert "fp8 compared at step 1" not in fp8.said and "fp8 compared at step 2: 20 layers, off by at most" in fp8.said
    found = layers(fp8)
    assert {entry["in"] for entry in found.values()} == {"fp8"} and {x["step"] for x in found.values()} == {2, 3}
    assert all(0 < entry[what] < 0.06 for entry in found.values() for what in COMPARED)
    assert not (plain.config.folder / "fp8.json").exists() and "fp8" not in plain.said.replace("fp8_linear", "")
    # As long as layers are compared, they are in float32.
    ours, theirs = losses(fp8), losses(plain)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6) and ours[2:] != theirs[2:]
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.long
def test_layers_off_by_more_than_the_slack_stay_in_the_runs_dtype(small, ran):
    free = layers(ran(small("free", fp8=EMULATED)))
    worst = sorted(max(entry[what] for what in COMPARED) for entry in free.values())
    slack = (worst[-3] + worst[-4]) / 2
    run = ran(small("kept", fp8=EMULATED | {"slack": slack}))
    kept = {name for name, entry in layers(run).items() if entry["in"] == "float32"}
    assert kept >= {name for name, x in free.items() if x["step"] == 2 and max(x[what] for what in COMPARED) > slack}
    assert 0 < len(kept) < len(free)
    for name in kept:
        assert f"fp8: {name} is off by " in run.said and "float32 again" in run.said
    none, plain = ran(small("none", fp8=EMULATED | {"slack": 1e-4})), ran(small("plain"))
    assert "warning: no layer multiplies in fp8 any more" in none.said
    assert losses(none) == pytest.approx(losses(plain), rel=1e-5)


def test_a_run_goes_on_to_the_bit_with_the_layers_it_had(small, ran):
    """Also where some are kept out, are not compared yet, and are compared anew after it."""
    settings = {"fp8": EMULATED | {"slack": 0.038, "check_every": 3}, "checkpoint": {"every": 2}}
    through = ran(small("through", **settings))
    middle = through.config.folder / "checkpoints" / "step-000002"
    again = ran(small("again", resume=str(middle), **settings))
    assert again.status == 0 and losses(again) == losses(through)[2:]
    assert layers(again) == layers(through)
    assert "float32" in {entry["in"] for entry in layers(through).values()}
    assert "fp8 compared at step 4" in through.said and "fp8 compared at step 4" in again.said
    ours, theirs = masters(again, 4), masters(through, 4)
    assert ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())
    longer = ran(small("again", steps=5, **settings))
    assert longer.status == 0 and "products in fp8, emulated: " in longer.said
    assert "were off by more than fp8.slack before" in longer.said
    # Without fp8 it goes on too, and says so: a checkpoint is what it is without.
    plain = ran(small("without", resume=str(middle), checkpoint={"every": 2}))
    assert plain.status == 0 and 'note: not as in step-000002: fp8.products: "emulated" -> "none"' in plain.said


def test_a_step_that_is_not_finite_decides_nothing(small, ran):
    lost = ran(small("lost", fp8=EMULATED, optim={"lr": 1e30, "max_nonfinite": 10}))
    assert "skipped: its loss or gradient is not finite" in lost.said
    assert all(entry["in"] == "fp8" for entry in layers(lost).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp8": {"products": "device"}}, "fp8.products device gives bfloat16, and dtype is float32: give --dtype"),
        ({"fp8": EMULATED, "lora": {"rank": 4}}, "those beside adapters are frozen: --memory.frozen fp8 holds"),
        ({"fp8": {"slack": 0}}, "fp8.slack must lie between 0 and 1, got 0"),
        ({"fp8": {"check_every": -1}}, "fp8.check_every must be at least 0, got -1"),
        ({"fp8": {"products": "devise"}}, "fp8.products"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(settings, message):
    with pytest.raises(MovaError, match=message):
        load_config("nano", **settings)


def test_a_device_without_fp8_products_is_refused_before_any_clip_is_read(small, ran):
    config = small("refused", dtype="bfloat16", fp8={"products": "device"})
    with pytest.raises(MovaError, match=r"has no fp8 products .*give --fp8.products emulated"):
        ran(config)
    assert not (config.folder / "metrics.jsonl").exists()


@pytest.mark.long
def test_other_ways_to_train_go_with_it(small, ran):
    """Another dtype and torch's own fp8 product, the audio tower alone, chunks, Muon, checkpointed layers."""
    for number, settings in enumerate(
        (
            {"dtype": "bfloat16", "ops": {"fp8_trained_linear": "scaled-mm-cpu"}},
            {"task": "audio"},
            {"model": {"bridge": False}},
            {"memory": {"checkpointing": "selective", "chunking": "rows"}, "optim": {"name": "muon"}},
            {"global_batch_size": 4, "memory": {"checkpointing": "full"}, "debug": "nan"},
        )
    ):
        run = ran(small(f"run-{number}", fp8=EMULATED, **settings))
        assert run.status == 0 and len(losses(run)) == 4, settings
        assert "fp8" in {entry["in"] for entry in layers(run).values()}, settings
