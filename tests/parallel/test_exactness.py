"""Several processes compute what one does: loss, every gradient, weights and moments after steps.

Bounds are those between correct implementations in float32 (see the model's page of numerics).
"""

import pytest

LOSS, GRADIENT, WEIGHTS, MOMENTS = 1e-5, 3e-5, 1e-5, 3e-5


def train(worlds, world: int, ulysses: int | None, **options) -> dict[str, float]:
    return worlds(world).run("errors_of_training", ulysses=ulysses, **options)[0]


def agree(errors: dict[str, float]) -> bool:
    return (
        errors["loss"] <= LOSS
        and errors["gradient"] <= GRADIENT
        and errors["weights"] <= WEIGHTS
        and errors["moments"] <= MOMENTS
    )


QUICK = [
    # world, ulysses, tokens, batch, expert
    (2, 2, 403, 1, 0),
    (2, 1, 7, 2, 1),
    (4, 4, 7, 1, 1),
    (4, 2, 403, 2, 0),
    (4, 1, 1001, 1, 0),
]
ALL = [
    (world, ulysses, tokens, batch, expert)
    for world in (2, 4, 8)
    for ulysses in (1, 2, 4)
    if ulysses <= world
    for tokens in (7, 403, 1001)
    for batch in (1, 2)
    for expert in (0, 1)
]


@pytest.mark.parametrize(("world", "ulysses", "tokens", "batch", "expert"), QUICK)
def test_one_step_equals_one_process(worlds, world, ulysses, tokens, batch, expert):
    errors = train(worlds, world, ulysses, tokens=tokens, batch=batch, expert=expert)
    assert agree(errors), errors


@pytest.mark.slow
@pytest.mark.parametrize(("world", "ulysses", "tokens", "batch", "expert"), ALL)
def test_three_steps_equal_one_process(worlds, world, ulysses, tokens, batch, expert):
    errors = train(worlds, world, ulysses, tokens=tokens, batch=batch, expert=expert, steps=3)
    assert agree(errors), errors


@pytest.mark.parametrize(("world", "ulysses", "optimizer"), [(2, 2, "sgd"), (2, 1, "adamw"), (4, 2, "adamw")])
def test_weights_and_moments_after_three_steps(worlds, world, ulysses, optimizer):
    errors = train(worlds, world, ulysses, tokens=64, batch=1, expert=0, optimizer=optimizer, steps=3)
    assert agree({**errors, "weights": errors["weights"] if optimizer == "sgd" else 0.0}), errors
