"""Peak memory on graphs whose living tensors can be counted by hand."""

import torch
from torch.utils.checkpoint import checkpoint

from mova_engine.bench.bandwidth import copy_bandwidth
from mova_engine.bench.peak_memory import LiveTensors, peak_above_gradients

N = 1 << 16
ONE = N * 4  # bytes of a float32 tensor of N elements


def _peak(run):
    with LiveTensors() as live:
        run()
    return live.peak()


def test_temporaries_count_until_they_are_dropped():
    x = torch.ones(N)

    def run():
        y = x + 1  # 1
        z = y * 2  # 2
        del y
        z = z - 1  # 2 for a moment
        return z.sum()

    assert _peak(run) // ONE == 2


def test_views_and_work_in_place_take_nothing():
    x = torch.ones(N)

    def run():
        y = x + 1
        y.add_(1).view(2, -1).t().mul_(3)
        return y[: N // 2]

    assert _peak(run) == ONE


def test_what_autograd_saves_counts_and_gradients_of_weights_do_not():
    x = torch.ones(N, requires_grad=True)

    def run():
        x.grad = None
        # sin saves its input x; exp saves its output: one tensor is alive from forward to backward, beside the loss.
        y = x.sin().exp()
        y.sum().backward()

    # At most alive, in the backward: exp's output, its product with the incoming gradient, cos x, and x's gradient.
    assert peak_above_gradients(run, lambda: [x.grad]) // ONE == 3
    assert _peak(run) // ONE == 4


def test_checkpointing_shows():
    x = torch.ones(N, requires_grad=True)

    def deep(x):
        for _ in range(8):
            x = x.sin()
        return x

    def plain():
        deep(deep(x)).sum().backward()

    def recomputed():
        checkpoint(deep, checkpoint(deep, x, use_reentrant=False), use_reentrant=False).sum().backward()

    assert _peak(recomputed) < 0.75 * _peak(plain)


def test_outputs_of_custom_operators_count():
    library = torch.library.Library("mova_test_bench", "FRAGMENT")
    library.define("twice(Tensor x) -> (Tensor, Tensor)")
    library.impl("twice", lambda x: (x * 2, x * 2), "CPU")
    x = torch.ones(N)
    assert _peak(lambda: torch.ops.mova_test_bench.twice(x)) == 2 * ONE


def test_copy_bandwidth_is_a_rate(backend):
    assert copy_bandwidth(backend) > 1e6
