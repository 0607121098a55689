"""AdamW with moments in 8 bits: the code and its bound, states, and steps beside those of float32 moments."""

import copy

import pytest
import torch

from mova_engine.ops.adamw_8bit import AdamW8bit, AdamW8bitReference, dequantise, dynamic_code, quantise
from mova_engine.ops.moment_blocks import BLOCK, LEAST_ROW, moment_bytes
from mova_engine.ops.optimizer_impl import AdamWReference

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
SHAPES = [(40, 300), (7, LEAST_ROW), (33,), (), (3, 5, 2, 9)]


@pytest.mark.parametrize("signed", [True, False])
def test_the_code_has_256_numbers_seven_decades_and_ends_at_one(signed):
    code = dynamic_code(signed)
    assert len(code) == len(code.unique()) == 256 and code[-1] == 1 and 0 in code
    assert code[0] == (-code[-2] if signed else 0)
    # Half as many numbers in each decade: none further apart than its share of the decade's width.
    for exponent in range(7):
        edges = [10.0**-exponent * x for x in (0.1, 1.0)]
        inside = code[(code > edges[0]) & (code < edges[1])]
        assert len(inside) == (64 if signed else 128) >> exponent


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("width", [LEAST_ROW, BLOCK, 300])
def test_a_value_is_rounded_by_half_a_step_of_its_decade(signed, width):
    """|x - q(x)| <= max(0.45 / n, 0.45 |x| / (0.1 n)) of a share x: n numbers over 0.9 of a decade, of which x may be
    at the lower end; the first decade's n = 64 (128 without a sign), half as many in each further one.
    """
    x = torch.randn(50, width, dtype=torch.float64) * 10.0 ** -torch.rand(50, width).mul(8)
    x = x if signed else x.abs()
    codes, scale = quantise(x, signed)
    assert codes.dtype == torch.uint8 and codes.shape == x.shape and scale.shape == (50, -(-width // BLOCK))
    found = dequantise(codes, scale, signed)
    share = (x.abs() / scale.repeat_interleave(BLOCK, 1)[:, :width]).clamp(min=1e-30)
    numbers = (64 if signed else 128) * 2.0 ** -(-share.log10()).floor().clamp(max=6)
    # Half a step within a decade; where it meets the next one, half of the wider step and of half a narrow one.
    bound = torch.where(share > 1e-7, 0.45 / numbers * 10.0 ** share.log10().ceil() * 1.01, 1e-6)
    assert ((found - x).abs() <= bound * (x.abs() / share)).all()
    assert torch.equal(found == 0, x == 0) or signed, "a second moment that is not zero stays so"
    if not signed:  # a block whose largest is negative has no number for it but the one beside
        again, same = quantise(found, signed)
        assert torch.equal(again, codes) and torch.equal(same, scale), "rounding what is rounded changes nothing"


def trained(factory, steps, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    optimizer = factory(params, **OPTIONS | options)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator) + 0.3
        optimizer.step()
    return params, optimizer


def test_what_is_held():
    params, optimizer = trained(AdamW8bit, 1)
    for p in params:
        state = optimizer.state[p]
        held = sum(x.numel() * x.element_size() for name, x in state.items() if name != "step")
        assert held == pytest.approx(2 * p.numel() * moment_bytes(p.shape[1:].numel()))
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.uint8
    assert optimizer.state[params[2]]["exp_avg"].dtype == torch.float32, "a bias has rows of one value"


def test_small_rows_are_adamw_to_the_bit():
    ours, theirs = trained(AdamW8bitReference, 5)[0], trained(AdamWReference, 5)[0]
    assert all(torch.equal(ours[i], theirs[i]) for i in (2, 3))
    assert not torch.equal(ours[0], theirs[0])


def test_a_step_differs_by_what_its_moments_are_rounded():
    """By the derivative: a share e of m and f of v move a step lr m / sqrt(v) by lr |m| / sqrt(v) (e + f / 2). Numbers
    without a sign lie within 3.5% of values in the first decade and 7% in the second, where random gradients' v is.
    """
    (ours, first), (theirs, second) = trained(AdamW8bitReference, 2), trained(AdamWReference, 2)
    m, v = (second.state[theirs[0]][name] for name in ("exp_avg", "exp_avg_sq"))
    b1, b2 = OPTIONS["betas"]
    step = OPTIONS["lr"] * (m.abs() / (1 - b1**2)) / (v / (1 - b2**2)).sqrt()
    # m's error is half a step of the first decade of its block's largest, however small m itself is.
    largest = m.abs().amax()
    wobble = OPTIONS["lr"] * b1 * 0.45 / 64 * largest / (1 - b1**2) / (v / (1 - b2**2)).sqrt()
    assert ((ours[0] - theirs[0]).abs() <= wobble + step * 0.0703 / 2 * 1.1 + 1e-6).all()
    assert first.state[ours[0]]["step"] == 2


def test_rows_apart_are_rows_together():
    """A process that has some rows of a weight takes the same steps with them, to the bit."""
    whole = trained(AdamW8bit, 3)[0][0]
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    parts = [made[0][rows].clone().requires_grad_() for rows in (slice(0, 13), slice(13, 40), slice(40, 40))]
    optimizer = AdamW8bit(parts, **OPTIONS)
    for _ in range(3):
        grads = [torch.randn(shape, generator=generator) + 0.3 for shape in SHAPES]
        for p, rows in zip(parts, (slice(0, 13), slice(13, 40), slice(40, 40)), strict=True):
            p.grad = grads[0][rows]
        optimizer.step()
    assert torch.equal(torch.cat([p.detach() for p in parts]), whole)
    assert optimizer.state[parts[2]]["exp_avg"].dtype == torch.uint8


def test_a_state_is_restored_to_the_bit():
    params, optimizer = trained(AdamW8bit, 3)
    copies = [p.detach().clone().requires_grad_() for p in params]
    other = AdamW8bit(copies, **OPTIONS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in (params, copies):
        for p in group:
            p.grad = torch.ones_like(p)
    optimizer.step(), other.step()
    for p, same in zip(params, copies, strict=True):
        assert torch.equal(p, same)
        assert {n: x.dtype for n, x in other.state[same].items()} == {n: x.dtype for n, x in optimizer.state[p].items()}
