"""Dry runs with fp8 products: their copies are counted and planned; machines without them are refused."""

import pytest

from mova_engine.config.recipes import TRAIN
from mova_engine.errors import MovaError
from mova_engine.ops.machine import assumed_machine
from mova_engine.rehearsal.rehearse import rehearse
from mova_engine.rehearsal.result import Rehearsal
from mova_engine.train.dry_run import dry_run_training

TRAINING = "mova_engine.train.dry_run:in_this_process"
PHASE2 = "--recipe joint-phase2 --device cuda --dry-run --dtype bfloat16 --global-batch-size 8 --world-size 8"
FP8 = "--fp8.products device --memory.checkpointing selective --parallel.context-parallel 1"


@pytest.mark.dry
def test_products_in_fp8_are_counted_and_planned():
    """Three layers, each with a bridge, of a clip that one process has whole."""
    config, options = TRAIN.parse_both(f"{PHASE2} {FP8}".split())
    found = Rehearsal.from_dict(rehearse(TRAINING, config, "cuda", options, 3))
    assert found.predicted == pytest.approx(found.peak, rel=0.05), str(found)
    assert found.operators["fp8_trained_linear"] == "scaled-mm-triton"


def test_a_machine_without_fp8_products_is_refused():
    words = "--recipe nano --device cpu --dtype bfloat16 --fp8.products device"
    with pytest.raises(MovaError, match=r"fp8.products device: this cpu has no fp8 products \(.*\): leave it out"):
        dry_run_training(TRAIN.parse(words.split()), assumed_machine("cpu"))
