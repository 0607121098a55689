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
    # One process without a token.
    (4, 2, 3, 1, 1),
    (4, 2, 403, 2, 0),
    (4, 1, 1001, 1, 0),
]
# Every way to share a clip: rings (1), Ulysses (as many as processes) and both.
MESHES = [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4), (8, 8)]
# One process's steps serve neighbours that differ in the mesh alone.
ALL = [
    (world, ulysses, fsdp, tokens, batch, expert)
    for tokens in (7, 403, 1001)
    for batch in (1, 2)
    for expert in (0, 1)
    for world, ulysses in MESHES
    for fsdp in (False, True)
]


@pytest.mark.parametrize(("world", "ulysses", "tokens", "batch", "expert"), QUICK)
def test_one_step_equals_one_process(worlds, world, ulysses, tokens, batch, expert):
    errors = train(worlds, world, ulysses, tokens=tokens, batch=batch, expert=expert)
    assert agree(errors), errors


@pytest.mark.parametrize(("world", "ulysses", "fsdp"), [(2, 2, False), (4, 2, True)])
def test_timesteps_within_a_clip_equal_one_process(worlds, world, ulysses, fsdp):
    """The parts of four processes begin where a latent frame of 16 tokens does, and so do those of two."""
    errors = train(worlds, world, ulysses, tokens=64, batch=2, expert=0, fsdp=fsdp, per_frame=True)
    assert agree(errors), errors


@pytest.mark.slow
@pytest.mark.parametrize(("world", "ulysses", "fsdp", "tokens", "batch", "expert"), ALL)
def test_three_steps_equal_one_process(worlds, world, ulysses, fsdp, tokens, batch, expert):
    """SGD with momentum judges the weights; AdamW, which magnifies what is all but zero, its moments."""
    for optimizer in ("sgd", "adamw"):
        options = {"fsdp": fsdp, "batch": batch, "expert": expert, "optimizer": optimizer, "steps": 3}
        errors = train(worlds, world, ulysses, tokens=tokens, **options)
        assert agree({**errors, "weights": errors["weights"] if optimizer == "sgd" else 0.0}), (optimizer, errors)


@pytest.mark.parametrize(("world", "ulysses", "optimizer"), [(2, 2, "sgd"), (2, 1, "adamw"), (4, 2, "adamw")])
def test_weights_and_moments_after_three_steps(worlds, world, ulysses, optimizer):
    errors = train(worlds, world, ulysses, tokens=64, batch=1, expert=0, optimizer=optimizer, steps=3)
    assert agree({**errors, "weights": errors["weights"] if optimizer == "sgd" else 0.0}), errors


@pytest.mark.parametrize(
    ("world", "ulysses", "fsdp", "dtype"),
    [
        (2, 2, False, "float32"),
        (2, 1, True, "float32"),
        (4, 2, False, "bfloat16"),
        # Four processes with shared weights among them: their many small exchanges take seconds.
        *(
            pytest.param(world, ulysses, fsdp, dtype, marks=pytest.mark.slow)
            for world, ulysses in ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4))
            for fsdp in (False, True)
            for dtype in ("float32", "bfloat16")
        ),
    ],
)
def test_checkpointing_changes_no_bit(worlds, world, ulysses, fsdp, dtype):
    """Every policy, with what is kept on the device and on the host, in every rank."""
    found = worlds(world).run("changed_by_checkpointing", ulysses=ulysses, fsdp=fsdp, dtype=dtype)
    assert not any(found), found


def test_exchanges_leave_before_what_they_run_beside(worlds):
    """Two processes, two chunks of one head each; the narrow model has two layers."""
    one = ["send", "rotate", "send", "rotate", "send"]  # v, q, k: the first chunk
    pipelined = ["send"] * 3 + ["attend", "send", "attend", "send"]
    back = ["send"] * 2 + ["differentiate"] + ["send"] * 3 + ["differentiate"] + ["send"] * 3
    for forward, backward, left in worlds(2).run("exchanged_in_order"):
        layer = one + pipelined
        # The gradients' own exchange comes before the first of them.
        assert forward == layer * 2 + back[:2]
        assert backward == (back * 2)[2:] and left == 0


@pytest.mark.parametrize(("world", "ulysses", "batch"), [(2, 2, 1), (4, 2, 2)])
def test_chunks_of_heads_change_no_bit(worlds, world, ulysses, batch):
    found = worlds(world).run("changed_by_head_chunks", ulysses=ulysses, batch=batch)
    assert not any(found), found


@pytest.mark.slow
@pytest.mark.parametrize(("world", "ulysses"), [(2, 2), (2, 1), (4, 2)])
def test_exchanges_compile_into_one_graph(worlds, world, ulysses):
    for graphs, changed in worlds(world).run("changed_by_compiling", ulysses=ulysses):
        assert graphs == 1 and not changed


@pytest.mark.parametrize(
    ("world", "ulysses", "expert", "checkpointing"),
    [
        (2, 2, 0, "full"),
        (2, 1, 1, "selective"),
        pytest.param(2, 2, 0, "none", marks=pytest.mark.slow),
        pytest.param(4, 2, 0, "full", marks=pytest.mark.slow),
        pytest.param(4, 4, 1, "none", marks=pytest.mark.slow),
    ],
)
def test_sharded_parameters_change_nothing(worlds, world, ulysses, expert, checkpointing):
    options = {"checkpointing": checkpointing, "expert": expert}
    errors = train(worlds, world, ulysses, tokens=64, batch=1, fsdp=True, **options)
    assert agree(errors), errors


def test_sharded_parameters_over_data_parallel_groups_too(worlds):
    """Two groups of two on the same clip: the mean over the groups is what one group computes."""
    errors = train(worlds, 4, 2, tokens=64, batch=1, expert=0, fsdp=True, context_parallel=2, steps=3)
    assert agree(errors), errors


def test_a_sharded_model_computes_in_bfloat16_and_sums_in_float32(worlds):
    for found in worlds(2).run("sharded_in_bfloat16"):
        assert abs(found["loss"]) < 0.02 and found["float32"] and 0.49 < found["share"] < 0.51, found


@pytest.mark.parametrize(
    ("mutation", "world", "ulysses"),
    [
        ("no merge", 2, 1),
        ("averaged merge", 2, 2),
        ("zero padding", 2, 2),
        ("differentiated merge", 2, 2),
    ],
)
def test_a_broken_merge_or_padding_is_noticed(worlds, mutation, world, ulysses):
    errors = train(worlds, world, ulysses, tokens=7, batch=1, expert=0, mutation=mutation)
    assert errors["gradient"] > 10 * GRADIENT, errors


def test_averaged_gradients_are_noticed(worlds):
    errors = train(worlds, 2, 2, tokens=7, batch=1, expert=0, divide=True)
    assert errors["gradient"] > 10 * GRADIENT, errors


def test_differentiating_through_the_merge_gives_good_outputs_and_wrong_gradients(worlds):
    """Why it is forbidden: nothing in the loss tells."""
    errors = train(worlds, 2, 2, tokens=64, batch=1, expert=0, mutation="differentiated merge")
    assert errors["loss"] <= LOSS and errors["gradient"] > 1e-3, errors


WRAPPED = [
    ("video_attention", 2, 2, ("non-contiguous",)),
    ("video_attention", 2, 1, ("self", "one-token", "non-contiguous")),
    ("video_attention", 4, 1, ("self", "one-token")),
    ("video_to_audio_attention", 2, 2, ("video-to-audio", "audio-to-video", "one-token", "odd-length")),
    ("video_to_audio_attention", 4, 2, ("video-to-audio", "audio-to-video", "text")),
]
# By default one dtype for each of these; every way to share a clip has both, in two or in four processes.
WITH_SLOW = [(WRAPPED[1], "bfloat16"), (WRAPPED[2], "float32"), (WRAPPED[3], "bfloat16"), (WRAPPED[4], "float32")]
JUDGED = [
    pytest.param(*wrapped, dtype, marks=[pytest.mark.slow] if (wrapped, dtype) in WITH_SLOW else [])
    for wrapped in WRAPPED
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(("role", "world", "ulysses", "cases", "dtype"), JUDGED)
def test_the_operator_suite_judges_wrapped_attention(worlds, role, world, ulysses, cases, dtype):
    wrong = worlds(world).run("findings_of_operator", role=role, ulysses=ulysses, dtype=dtype, cases=cases)
    assert not any(wrong), wrong


@pytest.mark.parametrize(("world", "ulysses", "tokens"), [(2, 2, 403), (4, 2, 7)])
def test_outputs_can_be_gathered_and_a_whole_clip_needs_nobody(worlds, world, ulysses, tokens):
    for gathered, local in worlds(world).run("sampled_and_local", ulysses=ulysses, tokens=tokens):
        assert gathered <= 1e-5 and local <= 1e-6


def test_impossible_inputs_are_refused_in_words(worlds):
    heads, length, in_ring = worlds(2).run("refusals")[0]
    assert heads == "1 heads cannot be divided among 2 Ulysses ranks; use ring attention"
    assert length == "attention got 5 queries and 5 keys, but this rank's shards have 4 and 4"
    assert in_ring == "attention got 5 queries and 5 keys, but this rank's shards have 5 and 4"


def test_sharded_gradients_are_clipped_by_the_norm_of_all_and_the_idle_expert_is_left_alone(worlds):
    for found in worlds(2).run("clipped"):
        assert abs(found["norm"]) <= LOSS and found["gradient"] <= GRADIENT and found["idle expert"], found
