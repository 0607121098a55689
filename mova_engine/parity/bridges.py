"""Case 3: the bridge, full and pooled, its tables, scales and gradients."""

import math
import re

import torch
from torch import Tensor

from mova_engine.config.model import BridgeConfig
from mova_engine.errors import MovaError
from mova_engine.models.bridge import Bridge
from mova_engine.models.layers import ResidualStream, Rope, Trace
from mova_engine.models.rope import aligned_audio_rope, aligned_video_rope
from mova_engine.parity import parameters
from mova_engine.parity.case import CaseDevice, GoldenCase, input_gradients

# The recorded scales (audio to video, video to audio).
_SCALES = (0.5, 1.5)
_NO_ROPE_SCALES = (0.75, 0.75)


def run_full(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """The full bridge."""
    _check_sizes(case)
    bridge = case.bridge(machine)
    layers = bridge.config.layers
    produced = _tables(case, bridge.config) | _layer(case, machine, bridge, "out.l0.", "mid.l0.", "grad.l0.")
    with torch.no_grad():
        produced |= _outputs("out.l1_scales.", *_apply(case, machine, bridge, layers[-1], scale=_SCALES))
        produced |= _outputs(
            "out.l0_norope.", *_apply(case, machine, bridge, layers[0], rope=False, scale=_NO_ROPE_SCALES)
        )
        produced |= _outputs("out.l0_small.", *_apply(case, machine, bridge, layers[0], factor=1e-3))
    return produced


def run_pooled(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """The pooled variant of the video-to-audio direction."""
    _check_sizes(case)
    bridge = case.bridge(machine)
    produced = _layer(case, machine, bridge, "out.", "mid.", "grad.")
    with torch.no_grad():
        produced |= _outputs("out.small.", *_apply(case, machine, bridge, bridge.config.layers[0], factor=1e-3))
    return produced


def check_layers(case: GoldenCase) -> list[str]:
    """Strategies whose bridged layers differ from the recorded ones, described; empty when all agree."""
    wrong = []
    for sizes, strategies in case.meta.get("interaction_layers", {}).items():
        visual, audio = (int(n) for n in re.findall(r"=(\d+)", sizes))
        for strategy, recorded in strategies.items():
            ours = BridgeConfig(visual, audio, 128, 128, interaction_strategy=strategy).layers
            if list(ours) != recorded:
                wrong.append(f"{strategy} at {sizes}: {list(ours)}, recorded {recorded}")
    return wrong


def _check_sizes(case: GoldenCase) -> None:
    """What the case states of its states' sizes, and that each frame rate beyond the first has its table."""
    tokens = {key: case.tensors[f"in.{key}"].shape[1] for key in ("visual", "audio")}
    stated = math.prod(case.parameter("grid"))
    parameters.require_size(case, "the product of grid", stated, "in.visual", tokens["visual"])
    parameters.require_size(case, "La", case.parameter("La"), "in.audio", tokens["audio"])
    tables = {float(m[1]) for name in case.tensors if (m := re.match(r"freqs\.fps([\d.]+)\.bias", name))}
    for fps in case.parameter("fps")[1:]:
        if fps not in tables:
            raise MovaError(f"{case.path}: fps names {fps}, of which no table is recorded")
    for fps in tables - set(case.parameter("fps")):
        raise MovaError(f"{case.path}: tables of {fps:g} frames a second are recorded, which fps does not name")


def _grid(case: GoldenCase) -> tuple[int, int, int]:
    return tuple(case.parameter("grid"))


def _outputs(prefix: str, video: Tensor, audio: Tensor) -> dict[str, Tensor]:
    return {prefix + "visual": video, prefix + "audio": audio}


def _apply(
    case: GoldenCase,
    machine: CaseDevice,
    bridge: Bridge,
    layer: int,
    *,
    inputs: tuple[Tensor, Tensor] | None = None,
    rope: bool = True,
    scale: tuple[float, float] = (1.0, 1.0),
    factor: float = 1.0,
    trace: Trace | None = None,
) -> tuple[Tensor, Tensor]:
    video, audio = inputs or (machine.put(case.tensors[f"in.{key}"]) * factor for key in ("visual", "audio"))
    grid, fps = _grid(case), case.parameter("fps")[0]
    tables = bridge.rope(grid, audio.shape[1], fps, machine.device) if rope else None
    streams = bridge(layer, ResidualStream(video), ResidualStream(audio), tables, grid, scale, trace)
    first, second = (stream.settle(machine.ops) for stream in streams)
    return first, second


def _layer(case: GoldenCase, machine: CaseDevice, bridge: Bridge, out: str, mid: str, grad: str) -> dict[str, Tensor]:
    leaves = {key: machine.put(case.tensors[f"in.{key}"]).requires_grad_() for key in ("visual", "audio")}
    states: dict[str, Tensor] = {}
    inputs = leaves["visual"], leaves["audio"]
    outputs = _apply(case, machine, bridge, bridge.config.layers[0], inputs=inputs, trace=states.__setitem__)
    torch.autograd.backward(outputs, [machine.put(case.tensors[f"in.cot_{key}"]) for key in leaves])
    gradients = {name: p.grad for name, p in bridge.named_parameters() if p.grad is not None}
    gradients |= input_gradients(leaves)
    produced = _outputs(out, *outputs) | {mid + name: x for name, x in states.items()}
    return produced | {grad + name: g for name, g in gradients.items()}


def _doubled(table: Rope, dtype: torch.dtype) -> dict[str, Tensor]:
    """Recorded tables repeat cos and sin for both halves of a head."""
    return {part: torch.cat([x, x], -1).to(dtype) for part, x in zip(("cos", "sin"), table, strict=True)}


def _tables(case: GoldenCase, config: BridgeConfig) -> dict[str, Tensor]:
    produced = {}
    head_dim, cpu = config.head_dim, torch.device("cpu")
    for name in case.tensors:
        match = re.match(r"(freqs|freqs_long)\.(?:fps([\d.]+)\.bias(\d)\.)?(bf16\.)?(cos|sin)_([va])(_rows)?$", name)
        if not match:
            continue
        kind, fps, bias, bf16, part, tower, rows = match.groups()
        long = kind == "freqs_long"
        if tower == "v":
            grid = (max(case.parameter("vrows")) + 1, 1, 1) if long else _grid(case)
            table = aligned_video_rope(grid, float(fps), config.audio_fps, bias == "1", head_dim, cpu)
        else:
            tokens = max(case.parameter("arows")) + 1 if long else case.parameter("La")
            table = aligned_audio_rope(tokens, head_dim, cpu)
        x = _doubled(table, torch.bfloat16 if bf16 else torch.float32)[part]
        produced[name] = x[case.parameter(f"{tower}rows")] if rows else x.unsqueeze(0)
    return produced
