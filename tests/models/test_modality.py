"""Timesteps that differ within a clip, given latents, places in time: the one forward against plain formulas."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models.test_towers import AUDIO, TINY, inputs
from models.test_towers import build as build_tiny
from rows_alone import rows_are_alone
from torch._subclasses import FakeTensorMode

from mova_engine.config.model import get_preset
from mova_engine.errors import MovaError
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.context_parallel import Sharding
from mova_engine.models.layers import NormOutput, ResidualStream
from mova_engine.models.modality import Modality, group_columns, modalities
from mova_engine.models.mova import Mova
from mova_engine.models.tower import Tower
from mova_engine.ops import bind, choose
from mova_engine.ops.fakes import fake_table
from mova_engine.ops.machine import assumed_machine
from mova_engine.rehearsal.memory_tracker import MemoryTracker

FRAMES, SOUNDS = 2, 7


@pytest.fixture
def ops(backend):
    return bind(backend)


def build(ops, backend):
    """A model in which timesteps matter: fresh ones hardly hear them."""
    model = build_tiny(ops, backend)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "time_" in name and name.endswith("weight"):
                parameter.mul_(10.0)
    return model


def timed(args, video_table, audio_table, video_index=(0, 1), audio_index=(0, 0, 0, 1, 1, 1, 1)):
    """The inputs with tables of timesteps."""
    video, audio = modalities(*args)
    return (
        replace(video, timestep=video_table, index=video_index),
        replace(audio, timestep=audio_table, index=audio_index),
    )


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def close(found, expected, bound=1e-5):
    return all(
        float((a - b).detach().abs().max()) <= bound * float(b.detach().abs().max())
        for a, b in zip(found, expected, strict=True)
    )


def test_a_table_of_one_timestep_is_the_per_clip_form_to_the_bit(ops, backend):
    model, args = build(ops, backend), inputs(backend)
    per_clip = model(*modalities(*args))
    tables = args[3].unsqueeze(1), args[4].unsqueeze(1)
    assert equal(model(*timed(args, *tables, (0,) * FRAMES, (0,) * SOUNDS)), per_clip)
    # The same timestep in several columns: rows of another product of the time embedding, so not to the bit.
    twice = [table.expand(-1, 2) for table in tables]
    assert close(model(*timed(args, *twice)), per_clip)
    other = [table * torch.tensor([1.0, 0.5], device=table.device) for table in twice]
    assert not close(model(*timed(args, *other)), per_clip, 1e-2)


def test_a_block_modulates_each_token_by_its_own_timestep(ops, backend):
    """Against the formula with a row of modulation for every token, in float64, with all gradients."""
    tower = build(ops, backend).video_dit
    block, dim, groups, length = tower.blocks[0], TINY.video.dim, 3, 4
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(backend.device())  # noqa: E731
    x, t_mod, context = draw(2, groups * length, dim), draw(2, groups, 6, dim), draw(2, 5, dim)
    rope = tower.rope((groups, 2, 2), backend.device())
    cotangent, trained = draw(2, groups * length, dim), list(block.parameters())

    leaves = [t.clone().requires_grad_() for t in (x, t_mod)]
    found = block(ResidualStream(leaves[0]), leaves[1].flatten(0, 1), context, rope).settle(ops)
    gradients = torch.autograd.grad((found * cotangent).sum(), [*leaves, *trained])

    exact = build(bind(backend, "reference"), backend).double().video_dit.blocks[0]
    wide = [t.double().clone().requires_grad_() for t in (x, t_mod)]
    rows = (exact.modulation.unsqueeze(1) + wide[1].repeat_interleave(length, 1)).unbind(2)
    shift1, scale1, gate1, shift2, scale2, gate2 = rows
    norm = lambda y: F.layer_norm(y, (dim,), eps=exact.eps)  # noqa: E731
    tables = tuple(t.double() for t in rope)
    y = wide[0]
    y = y + gate1 * exact.self_attn(NormOutput(norm(y) * (1 + scale1) + shift1), tables)
    normed = F.layer_norm(y, (dim,), exact.norm3.weight, exact.norm3.bias, exact.eps)
    y = y + exact.cross_attn(NormOutput(normed), context.double())
    y = y + gate2 * exact.ffn(NormOutput(norm(y) * (1 + scale2) + shift2))
    expected = torch.autograd.grad((y * cotangent.double()).sum(), [*wide, *exact.parameters()])
    assert close([found], [y.to(found.dtype)])
    assert close(gradients, [g.float() for g in expected], 3e-5)


def test_given_latents_have_timestep_zero(ops, backend):
    model, args = build(ops, backend), inputs(backend)
    video, audio = modalities(*args)
    given = (True, False), (True,) * 3 + (False,) * 4
    found = model(replace(video, given=given[0]), replace(audio, given=given[1]))
    tables = [torch.stack([torch.zeros_like(t), t], 1) for t in args[3:]]
    same = equal if rows_are_alone() else torch.testing.assert_close
    assert same(found, model(*timed(args, *tables))) is not False
    # All of it: as a clip of timestep zero, whatever is said of its noise.
    clean = replace(audio, given=(True,) * SOUNDS)
    assert same(model(video, clean), model(video, replace(audio, timestep=torch.zeros_like(args[4])))) is not False
    assert equal(model(video, replace(audio, given=(False,) * SOUNDS)), model(video, audio))


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_gradients_are_the_same_under_checkpointing(ops, backend, policy):
    model, args = build(ops, backend), inputs(backend)
    tables = [torch.stack([t, 0.3 * t], 1) for t in args[3:]]

    def gradients(**options):
        model.zero_grad(set_to_none=True)
        video, audio = model(*timed(args, *tables), **options)
        (video.square().sum() + audio.square().sum()).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert equal(gradients(runner=layer_runner(policy)), gradients())


def test_only_distances_in_time_matter(ops, backend):
    """Rotary embedding: both modalities moved by the same time give the same; one alone does not."""
    model, args = build(ops, backend), inputs(backend)
    video, audio = modalities(*args)
    here = model(video, audio)
    # In the bridge a latent frame is audio_fps * 4 / fps audio latents long.
    long = TINY.bridge.audio_fps * 4 / 24.0
    later = replace(video, times=tuple(10.0 + i for i in range(FRAMES)))
    sound_later = replace(audio, times=tuple(10.0 * long + i for i in range(SOUNDS)))
    assert close(model(later, sound_later), here, 2e-4)
    assert not close(model(later, audio), here, 1e-3)
    assert equal(model(replace(video, times=(0.0, 1.0)), replace(audio, times=tuple(map(float, range(SOUNDS))))), here)


class Parts(Sharding):
    def __init__(self, starts, rank):
        self._starts, self.size, self.rank = starts, len(starts), rank

    def starts(self, total):
        return self._starts


@pytest.mark.parametrize(
    ("index", "tokens", "starts", "expected"),
    [
        ((0, 1, 2), 20, (0,), [(0, 1, 2)]),
        ((0, 1, 1, 1), 20, (0,), [(0, 1, 1, 1)]),
        ((3, 3, 3), 20, (0,), [(3,)]),
        # Parts of one frame and a half: pieces of 20.
        ((0, 1, 2), 40, (0, 60), [(0, 0, 1), (1, 2, 2)]),
    ],
)
def test_tokens_are_cut_into_the_longest_equal_groups(index, tokens, starts, expected):
    assert [group_columns(index, tokens, Parts(starts, rank)) for rank in range(len(starts))] == expected


def test_parts_that_cut_runs_into_crumbs_are_refused_by_every_process():
    for rank in range(2):
        with pytest.raises(MovaError, match="2 processes cut them into pieces of 1: choose another context_parallel"):
            group_columns((0, 1), 40, Parts((0, 41), rank))
    assert group_columns((0, 0), 40, Parts((0, 41), 1)) == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": (0,)}, "index has 1 entries but the clip has 2 positions in time"),
        ({"given": (True,) * 3}, "given has 3 entries but the clip has 2 positions"),
        ({"times": (0.0,)}, "times has 1 entries"),
        ({"index": (0, 2)}, r"index must be of the timestep table's columns 0\.\.1, got \(0, 2\)"),
        ({"index": None}, r"timestep must have shape \[1\] or \[2\] \(one per clip\), got \[2, 2\]"),
        ({"timestep": torch.zeros(2)}, r"timestep must have shape \[1, g\] or \[2, g\]"),
        ({"timestep": torch.zeros(3, 2)}, r"timestep must have shape \[1, g\] or \[2, g\]"),
    ],
)
def test_what_does_not_fit_is_named(ops, backend, change, message):
    video, audio = timed(inputs(backend), torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(MovaError, match=message):
        build(ops, backend)(replace(video, **change), audio)


def test_the_audio_tower_alone_takes_them(ops, backend):
    tower: Tower = build(ops, backend).audio_dit
    _, audio = modalities(*inputs(backend))
    table = Modality(audio.latents, torch.tensor([[500.0, 20.0]]), audio.text, tuple(i % 2 for i in range(SOUNDS)))
    assert not close([tower(table)], [tower(replace(table, timestep=table.timestep[:, 0], index=None))], 1e-2)
    assert tower(table).shape == (2, AUDIO.out_dim, SOUNDS)


def _peak_and_bytes(per_frame: bool) -> tuple[int, int]:
    """Of forward and backward of two layers of the 360p model without data: the peak, and bytes of all results."""
    full = get_preset("mova-360p")
    sizes = {name: replace(getattr(full, name), num_layers=2) for name in ("video", "audio")}
    bridge = replace(full.bridge, visual_layers=2, audio_layers=2)
    table = fake_table("cpu", choose(assumed_machine("cpu"), {}, training=True, dtype=["bfloat16"]))
    tracker = MemoryTracker("cpu")
    with FakeTensorMode(), tracker:
        model = Mova(replace(full, **sizes, bridge=bridge, experts=1), table, dtype=torch.bfloat16)
        frames, height, width = full.clip.latent_shape
        clip = torch.empty(1, 36, frames, height, width, dtype=torch.bfloat16)
        sound = torch.empty(1, 128, full.clip.audio_tokens, dtype=torch.bfloat16)
        video, audio = modalities(clip, sound, torch.empty(1, 512, 4096), torch.zeros(1), torch.zeros(1))
        if per_frame:
            video = replace(video, timestep=torch.zeros(1, frames), index=tuple(range(frames)))
            audio = replace(audio, given=tuple(i % 2 == 0 for i in range(full.clip.audio_tokens)))
        outputs = model(video, audio, runner=layer_runner("none"))
        sum(x.float().sum() for x in outputs).backward()
    return tracker.peak().bytes, sum(change for _, change in tracker._events if change > 0)


@pytest.mark.long
def test_timesteps_per_frame_take_two_percent_more_memory_at_most():
    per_clip, per_frame = _peak_and_bytes(False), _peak_and_bytes(True)
    for less, more in zip(per_clip, per_frame, strict=True):
        assert less < more <= 1.02 * less
