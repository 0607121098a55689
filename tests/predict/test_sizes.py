"""Traffic, memory and FLOPs of runs equal the published figures and each other's arithmetic."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mova_engine.adapters.lora import add_lora, lora_parameters
from mova_engine.backend import get_backend
from mova_engine.codecs.dac import Dac, DacConfig
from mova_engine.codecs.wan import WanVideoCodec
from mova_engine.config.memory import CHECKPOINTING, PLAIN, MemoryConfig
from mova_engine.config.model import ClipConfig, get_preset
from mova_engine.config.stages import DECODE_AUDIO, DECODE_VIDEO, DENOISE, ENCODE_FRAMES, ENCODE_TEXT, LOAD_TOWERS
from mova_engine.errors import MovaError
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import FORMATS
from mova_engine.ops import bind
from mova_engine.ops.machine import assumed_machine
from mova_engine.ops.moment_blocks import moment_bytes
from mova_engine.predict.codec_cost import dac_encoder_flops, encode_cost, wan_encoder_flops
from mova_engine.predict.flops import Attention, operations, training_flops
from mova_engine.predict.job import IMPLEMENTATIONS, Job, Layout, PlannedRun
from mova_engine.predict.memory_use import memory
from mova_engine.predict.published import ROWS
from mova_engine.predict.row_padding import block_padding, padding
from mova_engine.predict.step_time import executed, rank_share, step_flops
from mova_engine.predict.step_traffic import (
    adapter_parameters,
    component_bytes,
    context_traffic,
    parameters,
    step_traffic,
)
from mova_engine.rehearsal.absent_weights import absent_components

SELECTIVE = PLAIN["lora"]
M360, M720 = get_preset("mova-360p"), get_preset("mova-720p")
REFERENCE = IMPLEMENTATIONS["reference"]


def _lora(layout: Layout, **policy: str) -> PlannedRun:
    return PlannedRun(Job(M360, "lora"), layout, replace(SELECTIVE, **policy))


def _reference(layout: Layout) -> PlannedRun:
    return PlannedRun(Job(M360, "lora"), layout, MemoryConfig(checkpointing="full"), REFERENCE)


@pytest.mark.parametrize(
    "run, counted",
    [
        (_lora(Layout(ulysses=4)), "26.7"),
        (_lora(Layout(ulysses=8)), "15.7"),
        (_lora(Layout(ulysses=4), checkpointing="out"), "36.7"),
        (_reference(Layout(ulysses=4)), "59.4"),
        (_reference(Layout(ulysses=4, ring=2)), "51.5"),
    ],
)
def test_context_parallel_traffic_is_what_the_runtime_counts(run, counted):
    assert f"{context_traffic(run).context / 1e9:.1f}" == counted


@pytest.mark.parametrize("layout", [Layout(), Layout(ulysses=4)])
def test_what_is_kept_on_the_host_is_counted(layout):
    """The device has two layers' part of it; all of it goes to the host, and all but two layers' comes back."""
    here, away = (_lora(layout, inputs="host", saved=place) for place in ("device", "host"))
    before, after = memory(here), memory(away)
    names = [name for name in before.device if "attention" in name]
    kept, layers = sum(before.device[name] for name in names), M360.video.num_layers
    assert kept > 17e9 / layout.context_parallel and after.host.items() >= {(n, before.device[n]) for n in names}
    assert [after.device[name] for name in names] == [2 / layers * before.device[name] for name in names]
    sent = step_traffic(away).to_host - step_traffic(here).to_host
    assert sent == pytest.approx(away.micro_batches * kept)
    assert step_traffic(away).from_host - step_traffic(here).from_host == pytest.approx(sent * (layers - 2) / layers)


def test_traffic_by_policy():
    none, selective, full = (
        context_traffic(_lora(Layout(ulysses=4), checkpointing=name)).all_to_all
        for name in ("none", "selective", "full")
    )
    assert none == selective == pytest.approx(full * 8 / 12)
    inference = context_traffic(PlannedRun(Job(M360, "inference"), Layout(ulysses=4)))
    assert inference.all_to_all == none / 2
    ratio = context_traffic(_lora(Layout(ulysses=4))).context / context_traffic(_reference(Layout(ulysses=4))).context
    assert ratio <= 0.46
    assert context_traffic(_lora(Layout(dp_shard=8))).context == 0


@pytest.mark.parametrize("ring, tensors", [(2, 6), (4, 8)])
def test_a_ring_passes_keys_values_and_their_gradients(ring, tensors):
    """Forward k and v, backward both again with their gradients, float32 (twice as wide) where sums travel."""
    run = PlannedRun(Job(M360, "lora"), Layout(ring=ring, ulysses=4))
    shard = 43120 * 5120 * 2 / (4 * ring)
    assert context_traffic(run).ring == pytest.approx(40 * tensors * (ring - 1) * shard)
    again = PlannedRun(Job(M360, "lora"), Layout(ring=ring, ulysses=4), MemoryConfig(checkpointing="full"))
    assert context_traffic(again).ring == pytest.approx(40 * (tensors + 2) * (ring - 1) * shard)


def test_sharded_weights_are_gathered_twice_and_gradients_scattered_once():
    run = PlannedRun(Job(M360, "full", clips=4), Layout(dp_shard=2, ulysses=4))
    count, share = parameters(run, used=True), 7 / 8
    traffic = step_traffic(run)
    assert traffic.gather == pytest.approx(2 * 2 * count * share * 2)  # two micro-batches, twice each, bf16
    assert traffic.scatter == pytest.approx(2 * count * share * 4)
    copies = step_traffic(PlannedRun(Job(M360, "full"), Layout(dp_replicate=2, dp_shard=8)))
    assert copies.replicas == pytest.approx(count * 4 / 8)


def test_memory_of_the_one_card_lora_is_the_designs():
    plain = memory(_lora(Layout(), expert="host"))
    small = memory(_lora(Layout(), expert="host", frozen="fp8"))
    gb = {name: value / 1e9 for name, value in plain.device.items()}
    assert f"{gb['weights']:.1f}" == "36.7"
    assert gb["block inputs"] == pytest.approx(17.7, abs=0.05)
    assert gb["saved attention (out and LSE)"] == pytest.approx(17.7 + 0.3, abs=0.1)
    # The design has 7 for a layer; a rehearsal counts what of it is computed again and not yet differentiated.
    assert gb["working set of a layer"] == pytest.approx(13.8, abs=0.2)
    assert plain.total / 1e9 == pytest.approx(88.4, abs=1.5) and small.total / 1e9 == pytest.approx(70, abs=1.5)
    assert plain.host["second video expert"] / 1e9 == pytest.approx(28.6, abs=0.05)


@pytest.mark.parametrize("ulysses, published", [(4, 17.7), (8, 8.8)])
def test_saved_attention_is_head_sharded(ulysses, published):
    device = memory(_lora(Layout(ulysses=ulysses))).device
    lse = 40 * 43120 * 40 * 4 / ulysses + 30 * 403 * (1536 * 2 + 12 * 4)  # and the bridge's merged attention
    saved = device["saved attention (q, k, v, out and LSE, head-sharded)"]
    assert (saved - lse) / 1e9 == pytest.approx(published, abs=0.05)


def test_full_training_holds_sixteen_bytes_a_weight_over_its_shards():
    # Two micro-batches: in one alone gradients come as activations go.
    run = PlannedRun(Job(M720, "full", ema=True, clips=2), Layout(ring=2, ulysses=8))
    device = memory(run).device
    used, all_of_it = parameters(run, used=True), parameters(run, used=False)
    assert all_of_it - used == pytest.approx(14.289e9, rel=1e-3)
    held = all_of_it + padding(run, used=False)
    assert held == pytest.approx(all_of_it, rel=2e-3)
    assert device["weights"] + device["second video expert"] == 4 * held / 16
    assert device["optimizer's moments"] == 8 * held / 16 and device["moving average"] == 4 * held / 16
    assert device["gradients"] == 4 * used / 16


@pytest.mark.parametrize("ranks", [2, 16, 1024])
def test_rows_that_fsdp_adds_to_a_block(ranks):
    model = Mova(M360, bind(get_backend("cpu"), "reference"), "meta")
    for tower in (model.video_dit, model.audio_dit):
        added = sum(
            (-(-len(each) // ranks) * ranks - len(each)) * each[0].numel() for each in tower.blocks[0].parameters()
        )
        assert block_padding(tower.config, ranks) == pytest.approx(added, rel=1e-3)


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_of_quantised_weights_are_those_of_the_released_model(kind):
    model = Mova(M360, bind(get_backend("cpu"), "reference"), "meta", torch.bfloat16)
    planned = component_bytes(PlannedRun(Job(M360, "inference", base=kind)))
    for name, component in absent_components(None, planned, kind).items():
        component.fit(getattr(model, name), torch.bfloat16)
        held = sum(x.nbytes for x in (*getattr(model, name).parameters(), *getattr(model, name).buffers()))
        assert planned[name] == pytest.approx(held, rel=0.005), name  # biases count as weights


def test_what_is_moved_to_the_host_leaves_the_device():
    job = Job(M360, "lora")
    here, there = (
        memory(PlannedRun(job)),
        memory(PlannedRun(job, policy=replace(SELECTIVE, inputs="host", weights="host", expert="host"))),
    )
    assert there.total < here.total
    # What is no layer stays: of each expert and of the audio tower.
    outside = there.device["weights outside of layers"]
    gone = there.host["weights"] + there.host["second video expert"]
    assert gone + outside == here.device["weights"] + here.device["second video expert"]
    assert outside < 0.02 * gone
    assert there.host["block inputs"] == here.device["block inputs"]
    assert step_traffic(PlannedRun(job)).from_host == 0
    assert (
        step_traffic(PlannedRun(job, policy=replace(SELECTIVE, weights="host", expert="host"))).from_host
        == 2 * there.host["weights"]
    )


def test_codecs_count_where_they_lie():
    """Text encoder 11.36 GB, autoencoders 0.25 and 1.49: all the time, or in their stage alone."""
    stays, leaves = (replace(IMPLEMENTATIONS["ours"], codecs_resident=resident) for resident in (True, False))

    def gb(implementation, job, layout, **policy):
        return memory(PlannedRun(job, layout, replace(SELECTIVE, **policy), implementation)).total / 1e9

    job, one = Job(M360, "lora"), Layout()
    assert gb(stays, job, one) - gb(leaves, job, one) == pytest.approx(11.36 + 0.25 + 1.49, abs=0.01)
    online = replace(job, online=True)
    assert gb(stays, online, one) == gb(leaves, online, one)
    # Of four that sample a clip the first has no audio codec; none is there while it denoises.
    four, sampled = Layout(ulysses=4, shard=False), Job(M360, "inference")
    assert gb(stays, sampled, four) - gb(leaves, sampled, four) == pytest.approx(11.36 + 0.25, abs=0.01)


def test_sampling_has_in_each_stage_what_residency_has_there():
    """By stage: words alone, then towers, of which the experts may take turns, beside one codec at a time, with what it
    works on: of pictures 1.7 GB encoding and 2.3 decoding.
    """

    def gb(**policy):
        found = memory(PlannedRun(Job(M360, "inference"), policy=MemoryConfig(**policy)))
        assert found.total == max(found.stages.values())
        return {name: round(value / 1e9, 1) for name, value in found.stages.items()}

    high, low = DENOISE
    encode, decode = {ENCODE_TEXT: 11.4, ENCODE_FRAMES: 1.9}, {DECODE_VIDEO: 67.9, DECODE_AUDIO: 66.8}
    assert gb() == gb(idle="files") == {**encode, LOAD_TOWERS: 36.7, high: 41.3, low: 69.9, **decode}
    apart = {LOAD_TOWERS: 8.2, high: 41.3, low: 41.3, DECODE_VIDEO: 10.7, DECODE_AUDIO: 9.6}
    assert gb(expert="host") == {**encode, **apart}
    idle = dict.fromkeys((*encode, LOAD_TOWERS, *decode), 78.4)
    assert gb(idle="device") == {**idle, high: 83.0, low: 83.0, ENCODE_FRAMES: 80.1, DECODE_VIDEO: 80.7}


@pytest.mark.long
def test_codecs_have_the_weights_that_are_counted():
    """Of modules of the released sizes, on the meta device."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    gated = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    with torch.device("meta"):
        modules = [
            diffusers.AutoencoderKLWan(),
            Dac(DacConfig()),
            transformers.UMT5EncoderModel(transformers.UMT5Config(**gated, feed_forward_proj="gated-gelu")),
        ]
    cost = encode_cost(M360)
    counted = [sum(x.numel() for x in [*m.parameters(), *m.buffers()]) for m in modules]
    assert counted == [cost.video_weights, cost.audio_weights, cost.text_weights]


@pytest.mark.parametrize("task", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_executed_flops_are_the_hardware_flops(task, checkpointing):
    run = PlannedRun(Job(M360, task), policy=MemoryConfig(checkpointing=checkpointing))
    total = 0.0
    for op in operations(M360):
        forward, recomputed, backward = executed(op, run)
        total += op.flops * (forward + recomputed + backward)
        if not isinstance(op, Attention):
            total += op.adapter_flops(run.job.adapters) * (3 + recomputed)
    assert total == pytest.approx(step_flops(run)[1], rel=1e-12)
    assert step_flops(run)[0] == training_flops(M360, lora_rank=16 if task == "lora" else None).model


def test_ranks_share_the_video_and_repeat_the_audio():
    ours = PlannedRun(Job(M360, "lora"), Layout(ulysses=4))
    theirs = _reference(Layout(ulysses=4))
    shares = {run: {op.part: rank_share(op, run) for op in operations(M360)} for run in (ours, theirs)}
    assert shares[ours]["video self-attention"] == shares[ours]["bridge v2a attention"] == 0.25
    assert shares[ours]["audio tower"] == 1 and shares[theirs]["video FFN"] == 0.25
    audio = next(op for op in operations(M360) if op.component == "audio_dit")
    assert rank_share(audio, theirs) == 101 / 403  # padded: 4 x 101


@pytest.mark.parametrize(
    "name, mfu, hfu",
    [
        ("inference 360p, 1 x 910B", 40, 40),
        ("inference 360p, 4 x 910B", 30, 30),
        ("inference 360p, 8 x 910B", 24, 24),
        ("inference 720p, 8 x 910B", 34, 34),
        ("inference 360p, 1 x H100", 62, 62),
        ("LoRA 360p, 8 x H100", 8.1, 12.1),
        ("LoRA 360p, 8 x 910A2", 13.9, 20.8),
    ],
)
def test_utilisation_of_the_published_steps_is_the_published_one(name, mfu, hfu):
    row = next(row for row in ROWS if row.name == name)
    peak = {"910a2": 376e12, "h100-80gb": 989.4e12}[row.hardware]
    rate = row.seconds * row.run.layout.world * peak / 100
    model, hardware = step_flops(row.run)
    assert model / rate == pytest.approx(mfu, abs=0.51 if mfu > 20 else 0.051)
    assert hardware / rate == pytest.approx(hfu, abs=0.51 if mfu > 20 else 0.051)


def test_adapters_are_counted_as_they_are_built():
    config = get_preset("nano")
    model = Mova(config, bind(get_backend("cpu"), "reference"), device="cpu")
    add_lora(model, ("q", "k", "v", "o", "ffn.0", "ffn.2"), rank=16, alpha=16)
    built = sum(p.numel() for p in lora_parameters(model).values())
    assert adapter_parameters(PlannedRun(Job(config, "lora")), used=False) == built


def test_encoders_cost_what_they_multiply():
    clip = ClipConfig(17, 64, 96)
    dac = Dac(DacConfig(), device="meta")
    with FlopCounterMode(display=False) as counter:
        dac.encoder(torch.randn(1, 1, clip.audio_samples, device="meta"))
    assert counter.get_total_flops() == pytest.approx(dac_encoder_flops(clip), rel=0.01)


def test_the_video_encoder_costs_what_it_multiplies():
    diffusers = pytest.importorskip("diffusers", reason="the released video autoencoder comes from diffusers")
    clip = ClipConfig(17, 64, 96)
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLWan()
        video = torch.randn(1, 3, 17, 64, 96)
    with FlopCounterMode(display=False) as counter:
        vae._encode(video)
    assert counter.get_total_flops() == pytest.approx(wan_encoder_flops(clip), rel=0.01)


@pytest.mark.long
def test_the_first_frame_condition_costs_what_the_planner_says():
    """At 193 frames, with the released autoencoder's layers at a twelfth of its width."""
    diffusers = pytest.importorskip("diffusers", reason="the released video autoencoder comes from diffusers")
    codec = WanVideoCodec(diffusers.AutoencoderKLWan(base_dim=8))
    video = torch.rand(1, 3, 193, 16, 16)
    with FlopCounterMode(display=False) as whole:
        codec.encode(video)
    video[:, :, 1:] = 0
    with FlopCounterMode(display=False) as condition:
        codec.encode(video)
    share = condition.get_total_flops() / whole.get_total_flops()
    assert 1 + share == pytest.approx(IMPLEMENTATIONS["ours"].encodes, abs=0.003)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layout": Layout(ulysses=3)}, "ulysses 3 does not divide the 40 video heads"),
        ({"layout": Layout(ulysses=8), "implementation": REFERENCE}, "ulysses 8 does not divide the 12 audio heads"),
        ({"layout": Layout(dp_shard=0)}, "must be at least 1"),
        ({"layout": Layout(cfg=2)}, "inference only"),
        ({"layout": Layout(dp_shard=3), "job": Job(M360, "lora", clips=4)}, "4 clips a step cannot be split over 3"),
        ({"job": Job(M360, "full"), "policy": replace(SELECTIVE, frozen="fp8")}, "full training freezes none"),
        ({"job": Job(M360, "full"), "policy": replace(SELECTIVE, weights="host")}, "use memory.optimizer host"),
        ({"policy": replace(SELECTIVE, optimizer="host")}, "for full training"),
        ({"implementation": REFERENCE}, "no such checkpointing"),
        ({"job": Job(M360, components=("audio_dit",)), "layout": Layout(ulysses=2)}, "no sequence to share"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    with pytest.raises(MovaError, match=message):
        replace(PlannedRun(Job(M360, "lora")), **change)


@pytest.mark.parametrize("rank", [16, *(pytest.param(rank, marks=pytest.mark.long) for rank in (8, 64))])
def test_moments_in_8_bits_have_the_bytes_that_are_counted(rank):
    """Of adapters on all layers, and of all weights, whose rows are of many lengths; on the meta device."""
    mova = Mova(M360, bind(get_backend("cpu"), "reference"), "meta")
    moments = lambda job: memory(PlannedRun(job)).device["optimizer's moments"]  # noqa: E731

    def held(parameters):
        return 2 * sum(p.numel() * moment_bytes(p.shape[1:].numel()) for p in parameters)

    if rank == 16:
        assert moments(Job(M360, moments="8bit")) == pytest.approx(held(mova.parameters()), rel=1e-3)
    mova.requires_grad_(False)
    add_lora(mova, ("q", "k", "v", "o", "ffn.0", "ffn.2"), rank, alpha=1.0)
    trained = [p for p in mova.parameters() if p.requires_grad]
    counted = moments(Job(M360, "lora", lora_rank=rank, moments="8bit"))
    assert counted == pytest.approx(held(trained), rel=0.05)
    assert counted < 0.65 * moments(Job(M360, "lora", lora_rank=rank))


def test_operators_that_compute_in_float32_take_no_more():
    """Where no operator is one kernel, rotations, gates and GELU are computed in float32 of a few rows at once. What
    is more on an NPU is the product beside GELU's result, where the feed-forward has the peak.
    """
    cuda, npu = assumed_machine("cuda", "sm90"), assumed_machine("npu", "910a2")
    feeding = 2 + 2 * M360.video.ffn_dim / M360.video.dim
    for job, layout, peak in (
        (Job(M360, "inference"), Layout(), feeding),
        (Job(M360, "inference"), Layout(ulysses=4, shard=False), None),
        (Job(M360, "lora"), Layout(ulysses=8, shard=False), None),
    ):
        run = PlannedRun(job, layout)
        fused, composed = (memory(run, machine).device["working set of a layer"] for machine in (cuda, npu))
        more = 0.0 if peak is None else peak - run.implementation.streaming
        # The sound's share is small.
        assert composed - fused == pytest.approx(2 * more * run.local_video, rel=0.01, abs=1), job.task
        assert memory(run).device == memory(run, cuda).device
