"""What checkpointed layers keep where weights are gathered ahead: torch's gradients, and other calls are free."""

from functools import partial

import pytest
import torch
from models.test_towers import build, gradients_of, inputs
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mova_engine.backend import get_backend
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.memory.kept_results import kept_results
from mova_engine.ops import bind

MM = torch.ops.aten.mm.default


@pytest.mark.long
@pytest.mark.parametrize("policy", ["selective", "out"])
def test_gradients_are_those_of_torchs_contexts(policy):
    backend = get_backend("cpu")
    model, args, calls = build(bind(backend), backend), inputs(backend), []
    runner = layer_runner(policy, gathered_ahead=True)
    for expert in (0, 1):
        found = []
        for each in (layer_runner(policy), runner):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                found.append(gradients_of(model, args, expert=expert, runner=each))
            calls.append(sum(x.count for x in profile.key_averages() if x.key == "mova::attention"))
        assert found[0].keys() == found[1].keys() and len(found[0]) > 4
        assert not [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]
    assert len(set(calls)) == 1 and calls[0] > 0, "attention is not run again"


def region(x: torch.Tensor, weight: torch.Tensor, runs: list[int], changed: list[torch.Tensor]) -> torch.Tensor:
    """A layer whose recomputation sums more numbers than its forward. changed: takes its product."""
    runs.append(1)
    for _ in runs:
        torch.ones(2).sum()
    product = x @ weight
    changed.append(product)
    return (product.sigmoid() @ weight).sigmoid()


def run(contexts, spoil: bool = False) -> tuple[torch.Tensor, list[int]]:
    source = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(3, 3, generator=source, requires_grad=True) for _ in range(2))
    runs, products = list[int](), list[torch.Tensor]()
    out = checkpoint(region, x, weight, runs, products, use_reentrant=False, context_fn=contexts)
    if spoil:
        products[0].detach().mul_(2.0)
    out.sum().backward()
    assert weight.grad is not None
    return weight.grad, runs


def test_a_recomputation_may_make_calls_that_the_forward_did_not():
    """torch's own contexts refuse it, which is why there are others."""
    torchs = partial(create_selective_checkpoint_contexts, [MM])
    with pytest.raises(RuntimeError, match="encountered during backward but not found in storage"):
        run(torchs)
    found, runs = run(partial(kept_results, frozenset({MM})))
    expected, _ = run(partial(kept_results, frozenset()))
    assert torch.equal(found, expected) and len(runs) == 2


def test_a_kept_result_that_was_changed_is_refused():
    with pytest.raises(RuntimeError, match="was changed in place"):
        run(partial(kept_results, frozenset({MM})), spoil=True)
