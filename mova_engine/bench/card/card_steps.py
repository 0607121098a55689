"""The parts of a step and steps: one block, the stack, a denoising step, a LoRA step, streamed weights.

Each is checked against the references in float64 at a small size, in the same process, before it is timed; where the
results are wrong there is no figure. MFU counts model FLOPs, HFU what recomputation adds (`predict/flops.py`).
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.bench.baseline import NAME as BASELINE_NAME
from mova_engine.bench.baseline import bind_baseline
from mova_engine.bench.candidate import Candidate, InProcessRunner, drawn_once
from mova_engine.bench.candidates import ENGINE, check_sides, measure_job
from mova_engine.bench.card.card_context import CardContext
from mova_engine.bench.card.card_predictions import layer_seconds, predicted, settings_of, stack_plan, step_plan
from mova_engine.bench.card.drawn_model import TimedStream, drawn_model
from mova_engine.bench.jobs import (
    GUIDANCE,
    block_job,
    bridge_job,
    denoise_inputs,
    denoise_job,
    denoise_once,
    stack_job,
    step_inputs,
    step_job,
    step_modalities,
    with_towers,
)
from mova_engine.bench.smaller_sizes import small_config
from mova_engine.bench.timing import interleave, median_interval, stopwatch
from mova_engine.bench.workloads import SEED, Workload
from mova_engine.config.model import MovaConfig
from mova_engine.errors import MovaError
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.mova import Mova
from mova_engine.ops import OpTable, bind
from mova_engine.predict.flops import forward_flops, training_flops
from mova_engine.predict.hardware import Hardware

# Runs of a whole step, at least, after one that warms up; and of a layer beside the baseline, at most.
_STEPS, _PAIRS = 3, 10
_RANK = 16
# Seconds after which no further run begins.
_STEP_SECONDS, _LAYER_SECONDS = 30.0, 10.0
# Shares of the card's memory that a step is planned for, until it fits.
_SHARES = (1.0, 0.9, 0.8)
# Frames of a clip so short that copying the weights takes longer than computing with them.
_SHORT = 17
_TOO_LARGE = "the planner: the card's memory"
Rows = list[dict[str, Any]]


def time_block(context: CardContext, unit: str) -> Rows:
    """Forward and backward of one video block, beside the baseline."""
    return _layer(context, partial(block_job, tower="video"), "video_dit")


def time_audio_block(context: CardContext, unit: str) -> Rows:
    """Forward and backward of one audio block, beside the baseline."""
    return _layer(context, partial(block_job, tower="audio"), "audio_dit")


def time_bridge(context: CardContext, unit: str) -> Rows:
    """Forward and backward of one bridge layer, both directions, beside the baseline."""
    return _layer(context, bridge_job, "dual_tower_bridge")


def _layer(context: CardContext, make: Callable[[MovaConfig], Workload], component: str) -> Rows:
    job, small = make(context.config), make(small_config(context.config))
    sides, note = [_engine(context)], None
    try:
        table = bind_baseline(context.backend)
    except MovaError as error:
        note = f"no baseline: {error}"
    else:
        sides.append(Candidate(BASELINE_NAME, table, context.dtype))
    pairs = 1 if context.rehearsed else _PAIRS
    measure = partial(measure_job, job, small, backend=context.backend, pairs=pairs, seconds=_LAYER_SECONDS)
    try:
        row = measure(sides)
    except torch.OutOfMemoryError:
        if len(sides) == 1:
            raise
        note = "no baseline: its memory does not fit the card"
    if note is not None:
        context.clear()
        row = measure(sides[:1])
    engine = row["sides"][ENGINE]
    low, high = median_interval(row["times_s"][ENGINE])
    figures = {name: engine[name] for name in ("median_s", "mfu", "hfu", "runs")}
    peak = engine["allocator_peak_bytes"] or engine["peak_live_bytes"]
    expected = {"seconds": layer_seconds(context.planned, context.hardware, component)}
    return [row | figures | {"interval_s": [low, high], "peak_bytes": peak, "note": note, "predicted": expected}]


def _engine(context: CardContext, *, training: bool = True) -> Candidate:
    return Candidate(ENGINE, bind(context.backend, training=training, dtypes=(context.dtype,)), context.dtype)


def _checked(context: CardContext, small: Workload, side: Candidate) -> dict[str, Any]:
    """The check of a job's small form; raises MovaError where it is wrong."""
    runner = InProcessRunner(side, context.backend, drawn_once(context.backend, context.dtype), context.dtype)
    return check_sides(small, {ENGINE: runner}, context.dtype, context.backend)


def step_row(
    context: CardContext, job: str, run: Callable[[], object], flops: tuple[float, float], **facts: Any
) -> dict[str, Any]:
    """Time a whole step. flops: (model, hardware) of it. The peak of memory is the allocator's, weights included."""
    backend = context.backend
    backend.reset_peak_memory()
    timed, least = stopwatch(run, backend), 1 if context.rehearsed else _STEPS
    if context.measure is None:
        times = interleave({job: timed}, rounds=least, seconds=_STEP_SECONDS, least=least)[job]
    else:
        times = list(context.measure(timed))
    median, (low, high) = statistics.median(times), median_interval(times)
    model, hardware = flops
    peak = backend.peak_flops(context.dtype)
    return {
        "job": job,
        **facts,
        "dtype": str(context.dtype).removeprefix("torch."),
        "median_s": median,
        "interval_s": [low, high],
        "runs": len(times),
        "times_s": times,
        "model_tflop": model / 1e12,
        "hardware_tflop": hardware / 1e12,
        "flop_per_s": model / median,
        "mfu": model / median / peak if peak else None,
        "hfu": hardware / median / peak if peak else None,
        "peak_bytes": backend.peak_memory(),
    }


def _sizes(config: MovaConfig) -> dict[str, Any]:
    clip = config.clip
    layers = {"video_layers": config.video.num_layers, "audio_layers": config.audio.num_layers}
    return {"model": config.name, **layers, "video_tokens": clip.video_tokens, "audio_tokens": clip.audio_tokens}


def _scaled(asked: MovaConfig, fitting: MovaConfig) -> dict[str, Any]:
    """What a row says where the planner found what was asked for too large for the card."""
    if _sizes(fitting) == _sizes(asked):
        return {}
    return {"scaled": {"asked": _sizes(asked), "measured": _sizes(fitting), "why": _TOO_LARGE}}


def _fitted(context: CardContext, measure: Callable[[Hardware], dict[str, Any]]) -> Rows:
    """The row that `measure` makes for the card; where its memory does not suffice, as planned for less of it."""
    for share in _SHARES:
        memory = context.hardware.memory * share
        try:
            row = measure(context.hardware.with_limits(vram=memory))
        except torch.OutOfMemoryError:
            row = None
        if row is not None:
            return [row if share == 1 else row | {"note": f"planned for {share:.0%} of the memory: all was too little"}]
        # Outside the handler, whose traceback held the failed attempt's tensors.
        context.clear()
    raise MovaError(f"out of memory, planned for {_SHARES[-1]:.0%} of it too")


def time_stack(context: CardContext, unit: str) -> Rows:
    """Forward and backward of as many video blocks as fit, each with its own weights, gradients into one buffer."""
    return _fitted(context, partial(_stack, context))


def _stack(context: CardContext, hardware: Hardware) -> dict[str, Any]:
    model, policy, expected = stack_plan(context.planned, hardware)
    blocks = model.video.num_layers
    options = {"offload": policy.inputs == "host", "offload_saved": policy.saved == "host"}
    checkpointing = policy.checkpointing
    side = _engine(context)
    checks = _checked(context, stack_job(small_config(context.config), checkpointing, **options), side)
    measured = context.config if context.rehearsed else with_towers(context.planned, video=model.video)
    job = stack_job(measured, checkpointing, **options)
    work = side.work(job, drawn_once(context.backend, context.dtype)(job), context.dtype)
    facts = {**job.facts, "checks": checks, "settings": settings_of(policy), "predicted": expected}
    row = step_row(context, "stack", work.run, (job.model_flops, job.hardware_flops), **facts)
    if blocks < context.planned.video.num_layers:
        asked = {"blocks": context.planned.video.num_layers}
        row["scaled"] = {"asked": asked, "measured": {"blocks": blocks}, "why": _TOO_LARGE}
    return row


def time_denoise(context: CardContext, unit: str) -> Rows:
    """One denoising step of two evaluations; weights where the planner has them on this card."""
    return _fitted(context, partial(_denoised, context, context.planned, unit))


def time_streaming(context: CardContext, unit: str) -> Rows:
    """A denoising step whose weights come from the host: how long the copies take, and how long the step waits for
    them; of the whole clip, or of one so short that copying takes longer than computing.
    """
    config = context.planned
    if unit.endswith("short clip"):
        config = replace(config, clip=replace(config.clip, frames=_SHORT))
    return _fitted(context, partial(_denoised, context, config, f"streaming, {unit}", weights="host"))


def _denoised(context: CardContext, asked: MovaConfig, job: str, hardware: Hardware, **fixed: str) -> dict[str, Any]:
    plan = step_plan("inference", asked, hardware, **fixed)
    fitting = plan.run.job.model
    side = _engine(context, training=False)
    checks = _checked(context, denoise_job(small_config(context.config)), side)
    config = context.config if context.rehearsed else fitting
    streamed = plan.run.policy.weights == "host"
    if streamed:
        checks["streamed"] = _streams_exactly(context, small_config(context.config), side.ops)
    mova, stream = drawn_model(config, side.ops, context.device, context.dtype, streamed=streamed)
    generator = torch.Generator(context.device).manual_seed(SEED)
    inputs = denoise_inputs(config, generator, context.device, context.dtype)
    flops = float(GUIDANCE.evaluations * forward_flops(config).total)
    facts = _sizes(config) | _scaled(asked, fitting)
    facts |= {"settings": settings_of(plan.run.policy), "checks": checks}
    facts["predicted"] = predicted(plan)

    def run() -> None:
        with torch.no_grad():
            denoise_once(mova, inputs)

    return _streamed_row(context, job, run, (flops, flops), stream, facts)


def _streamed_row(
    context: CardContext,
    job: str,
    run: Callable[[], object],
    flops: tuple[float, float],
    stream: TimedStream | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Time a step, and a further one with its copies, where weights are streamed."""
    row = step_row(context, job, run, flops, **facts)
    if stream is not None:
        stream.reset()
        run()
        context.backend.synchronize()
        row["copies"] = stream.seconds()
        stream.close()
    return row


def _streams_exactly(context: CardContext, config: MovaConfig, ops: OpTable) -> dict[str, Any]:
    """Whether streamed weights give the resident ones' latents, to the bit. Raises MovaError where they do not."""
    found = []
    for streamed in (False, True):
        mova, stream = drawn_model(config, ops, context.device, context.dtype, streamed=True)
        if not streamed:
            _bring_home(mova, context.device)
        generator = torch.Generator(context.device).manual_seed(SEED)
        inputs = denoise_inputs(config, generator, context.device, context.dtype)
        with torch.no_grad():
            found.append([x.cpu() for x in denoise_once(mova, inputs)])
        if stream is not None:
            stream.close()
    if not all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
        raise MovaError("streamed weights give other latents than resident ones: no speed is reported")
    return {"equal": True}


def _bring_home(mova: Mova, device: torch.device) -> None:
    """Make a streamed model's weights resident: each layer's are copied when the stream has brought them."""
    streamed, mova.streamed = mova.streamed, None
    assert streamed is not None, "it was made so"
    stream = streamed.stream  # pyright: ignore[reportAttributeAccessIssue] a StreamedModel's
    kept: list[tuple[Any, str, Tensor]] = []
    for number, unit in enumerate(stream.units):
        stream.enter(number)
        kept += [(place.holder, place.key, place.holder[place.key].clone()) for place in unit.places]
    stream.leave()
    for holder, key, value in kept:
        holder[key] = nn.Parameter(value, requires_grad=False)


class LoraStep:
    """A training step of adapters: forward, loss, backward, clipping, AdamW on float32 masters, as the trainer's."""

    def __init__(self, mova: Mova, ops: OpTable, inputs: Mapping[str, Tensor], settings: Mapping[str, str]) -> None:
        self._mova, self._ops = mova, ops
        self._video, self._audio = step_modalities(dict(inputs))
        offload, offload_saved = settings["inputs"] == "host", settings["saved"] == "host"
        self._runner = layer_runner(settings["checkpointing"], offload, offload_saved=offload_saved)
        self._trained: list[Tensor] = [p for p in mova.parameters() if p.requires_grad]
        self._masters = [p.detach().float().clone().requires_grad_() for p in self._trained]
        self._optimizer = ops.adamw(self._masters, lr=1e-4, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)

    def run(self) -> None:
        """Take one step."""
        fps = self._mova.config.clip.fps
        outputs = self._mova(self._video, self._audio, runner=self._runner, fps=fps)
        losses = [F.mse_loss(x.float(), torch.zeros_like(x, dtype=torch.float32)) for x in outputs]
        torch.stack(losses).sum().backward()
        for master, p in zip(self._masters, self._trained, strict=True):
            assert p.grad is not None, "every adapter is on the way"
            master.grad, p.grad = p.grad.float(), None
        self._ops.clip_grad_norm([master.grad for master in self._masters], 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_(self._trained, self._masters)


def time_lora(context: CardContext, unit: str) -> Rows:
    """One LoRA step on latents that are there already; weights and activations where the planner has them."""
    return _fitted(context, partial(_lora, context))


def _lora(context: CardContext, hardware: Hardware) -> dict[str, Any]:
    plan = step_plan("lora", context.planned, hardware)
    fitting, settings = plan.run.job.model, settings_of(plan.run.policy)
    checkpointing = settings["checkpointing"]
    side = _engine(context)
    checks = _checked(context, step_job(small_config(context.config), checkpointing, lora_rank=_RANK), side)
    config = context.config if context.rehearsed else fitting
    streamed = settings["weights"] == "host"
    mova, stream = drawn_model(config, side.ops, context.device, context.dtype, streamed=streamed, lora_rank=_RANK)
    generator = torch.Generator(context.device).manual_seed(SEED)
    inputs = step_inputs(config, generator, context.device, context.dtype)
    step = LoraStep(mova, side.ops, inputs, settings)
    counted = training_flops(config, lora_rank=_RANK)
    again = {"none": counted.hardware, "full": counted.hardware_full}.get(checkpointing, counted.hardware_selective)
    facts = (
        _sizes(config)
        | _scaled(context.planned, fitting)
        | {"lora_rank": _RANK, "settings": settings, "checks": checks}
    )
    facts["predicted"] = predicted(plan)
    return _streamed_row(context, "lora", step.run, (counted.model, again), stream, facts)
