"""Runs with `optim.moments 8bit`: they go on to the bit, near float32's, and not with the other kind."""

import pytest
import torch

from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_tensors
from mova_engine.train.metrics import read_metrics

EIGHT = {"moments": "8bit"}


def losses(run):
    return [row["loss"] for row in read_metrics(run.config.folder / "metrics.jsonl") if "loss" in row]


@pytest.mark.long
def test_a_run_goes_on_to_the_bit(small, ran):
    through = ran(small("through", optim=EIGHT, checkpoint={"every": 2}))
    middle = through.config.folder / "checkpoints" / "step-000002"
    moments, _ = read_tensors(middle / "training" / "optimizer.safetensors")
    assert {x.dtype for name, x in moments.items() if name.endswith(".ffn.0.weight:exp_avg")} == {torch.uint8}
    again = ran(small("again", optim=EIGHT, resume=str(middle)))
    assert again.status == 0 and losses(again) == losses(through)[2:]
    plain = ran(small("plain"))
    assert losses(plain)[0] == losses(through)[0] and losses(plain) != losses(through)
    assert losses(through) == pytest.approx(losses(plain), rel=0.02)
    with pytest.raises(MovaError, match="holds AdamW's moments in 8bit: give --optim.moments 8bit, or --out for a new"):
        ran(small("other", resume=str(middle)))


def test_a_named_step_of_float32_moments_is_refused(small):
    with pytest.raises(MovaError, match="ops.adamw names a step with float32 moments"):
        small(optim=EIGHT, ops={"adamw": "fused"})
