"""What a case may set, and the schedule that its parameters describe.

Whatever a case sets must reach its run: an entry that no run reads, or an option of the reference that the engine does
not have, is an error that names it. Sizes that a case states beside its tensors must be those of the tensors.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from mova_engine.checkpoints.released import BOUNDARY_RATIO, SCHEDULER_CONFIG, TOWER_OPTIONS
from mova_engine.codecs.dac import DacConfig
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, VideoDiTConfig
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError, suggest
from mova_engine.parity.case import GoldenCase

# Entries that say where a case comes from and what its tensors are.
_PROVENANCE = frozenset(("case", "seed", "dtype", "notes", "tensors", "float32_vs_float64_max_rel", "sensitivity"))
_CONTENTS = frozenset(("config", "case_parameters", "weights"))
# The schedule's parameters by the reference's names, with the values of the released models; audio_shift is that of the
# variants ("dual") in which both modalities have their own.
SCHEDULE = {
    "shift": SCHEDULER_CONFIG["shift"],
    "audio_shift": 1.0,
    "boundary": BOUNDARY_RATIO,
    "num_train_timesteps": SCHEDULER_CONFIG["num_train_timesteps"],
    "sigma_min": SCHEDULER_CONFIG["sigma_min"],
}
# Options with the only value that the engine computes.
_SCHEDULE_OPTIONS = {
    name: SCHEDULER_CONFIG[name]
    for name in (
        *("sigma_max", "inverse_timesteps", "extra_one_step", "reverse_sigmas"),
        *("exponential_shift", "exponential_shift_mu", "shift_terminal"),
    )
}
_VIDEO_OPTIONS = TOWER_OPTIONS | {"require_vae_embedding": True}
_AUDIO_OPTIONS = TOWER_OPTIONS | {"require_vae_embedding": False, "vae_type": "dac"}


@dataclasses.dataclass(frozen=True)
class Accepted:
    """What a kind of case may set. parameters: names in `case_parameters`; config: names in `config`, with the value
    that it must have (None: any); parts: configurations within it; weights: components; facts: further entries.
    """

    parameters: frozenset[str] = frozenset()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    weights: frozenset[str] = frozenset()
    facts: frozenset[str] = frozenset()


def _any(names: Iterable[str]) -> dict[str, None]:
    return dict.fromkeys(names)


def _fields(kind: type) -> dict[str, None]:
    return _any(field.name for field in dataclasses.fields(kind))


_VIDEO, _AUDIO = _fields(VideoDiTConfig) | _VIDEO_OPTIONS, _fields(AudioDiTConfig) | _AUDIO_OPTIONS
_BRIDGE = _fields(BridgeConfig)
_PARTS = {"video": _VIDEO, "audio": _AUDIO, "bridge": _BRIDGE}
_STATS = _any(("latents_mean", "latents_std"))
_EXPERTS = frozenset(("video", "video_2", "audio", "bridge"))
_DAC = Accepted(config=_fields(DacConfig) | {"sample_rate": DacConfig().sample_rate}, weights=frozenset(("dac",)))

ACCEPTED: dict[str, Accepted] = {
    "case1_video_dit": Accepted(config=_VIDEO, weights=frozenset(("video",))),
    "case2_audio_dit": Accepted(config=_AUDIO, weights=frozenset(("audio",))),
    "case3_bridge_full": Accepted(
        frozenset(("grid", "La", "fps", "vrows", "arows")),
        _BRIDGE,
        weights=frozenset(("bridge",)),
        facts=frozenset(("interaction_layers",)),
    ),
    "case3_bridge_pooled": Accepted(frozenset(("grid", "La", "fps")), _BRIDGE, weights=frozenset(("bridge",))),
    "case4_dual_tower_step": Accepted(frozenset(("fps",)), parts=_PARTS, weights=_EXPERTS - {"video_2"}),
    "case4_training_step": Accepted(frozenset(("fps", "grid", *SCHEDULE)) - {"audio_shift"}, _STATS, _PARTS, _EXPERTS),
    "case5_scheduler": Accepted(
        frozenset(("steps", "traj_steps", *SCHEDULE)),
        _any(SCHEDULE) | _SCHEDULE_OPTIONS,
        facts=frozenset(("values",)),
    ),
    "case6_audio_vae_fused": _DAC,
    "case6_audio_vae_weight_norm": _DAC,
    "case7_sampling_trajectory": Accepted(
        frozenset(("fps", "grid", "steps", "guidance_scale", *SCHEDULE)), _STATS, _PARTS, _EXPERTS
    ),
    "case8_first_frame_condition": Accepted(
        frozenset("Thw"), _any(("z_dim", "temporal_stride", "spatial_stride")) | _STATS
    ),
    "case9_lora": Accepted(frozenset(("fps", "rank", "alpha")), parts=_PARTS, weights=_EXPERTS | {"lora"}),
}


def check_case(case: GoldenCase) -> None:
    """MovaError, in one line with file and entry, for what a case of a known kind sets and its run does not read."""
    accepted = ACCEPTED[case.kind]
    _known(case, "", case.meta, _PROVENANCE | _CONTENTS | accepted.facts)
    if not str(case.meta.get("dtype", "float32")).startswith("float32"):
        raise MovaError(f"{case.path}: dtype is {json.dumps(case.meta['dtype'])}; cases are recorded in float32")
    _known(case, "case_parameters", case.parameters, accepted.parameters)
    _known(case, "weights", case.meta.get("weights", {}), accepted.weights)
    config = case.meta.get("config", {})
    _known(case, "config", config, accepted.config.keys() | accepted.parts.keys())
    _options(case, "config", config, accepted.config)
    for part, options in accepted.parts.items():
        _known(case, f"config.{part}", config.get(part, {}), options)
        _options(case, f"config.{part}", config.get(part, {}), options)


def _known(case: GoldenCase, entry: str, found: Any, known: Iterable[str]) -> None:
    if not isinstance(found, Mapping):
        raise MovaError(f"{case.path}: {entry} must be an object, got {json.dumps(found)}")
    for name in found:
        if name not in known:
            place = f"{entry}.{name}" if entry else name
            takes = f"Known: {', '.join(sorted(known)) or 'none'}"
            raise MovaError(f"{case.path}: {case.kind} does not read {place}.{suggest(name, known)} {takes}")


def _options(case: GoldenCase, entry: str, found: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Options that have only one value here. None in `options` is any value, and in a case what it leaves to us."""
    for name, ours in options.items():
        only_off = name in _SCHEDULE_OPTIONS and ours is None
        if (ours is not None or only_off) and found.get(name, ours) != ours:
            told = f"{entry}.{name} is {json.dumps(found[name])}"
            raise MovaError(f"{case.path}: {told}; the engine computes {json.dumps(ours)} alone")


def number(
    case: GoldenCase, name: str, default: float | None = None, *, whole: bool = False, least: float | None = None
) -> Any:
    """A parameter of a case, a positive number (with `least`: not below it); where it sets none, its `config`'s or
    `default`.
    """
    config = case.meta.get("config", {}) if default is not None else {}
    found = [place[name] for place in (case.parameters, config) if name in place]
    if not found and default is None:
        raise MovaError(f"{case.path}: case_parameters lacks {name}")
    value: Any = found[0] if found else default  # of a JSON file
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (value <= 0 if least is None else value < least):
        kind = f"{'positive ' if least is None else ''}{'whole ' if whole else ''}number"
        raise MovaError(f"{case.path}: {name} must be a {kind}, got {json.dumps(value)}")
    if any(other != value for other in found):
        raise MovaError(f"{case.path}: {name} is {found[0]} in case_parameters, {found[1]} in config")
    return value


def schedule(case: GoldenCase, video_shift: float | None = None, audio_shift: float | None = None) -> Schedule:
    """The schedule of a case, with equal shifts unless told otherwise."""
    shift = number(case, "shift", SCHEDULE["shift"]) if video_shift is None else video_shift
    scale = number(case, "num_train_timesteps", SCHEDULE["num_train_timesteps"], whole=True)
    lowest = number(case, "sigma_min", SCHEDULE["sigma_min"])
    if lowest >= 1:
        raise MovaError(f"{case.path}: sigma_min must be below 1, got {lowest}")
    try:
        return Schedule(
            shift,
            shift if audio_shift is None else audio_shift,
            number(case, "boundary", SCHEDULE["boundary"]),
            scale,
            lowest,
        )
    except MovaError as error:
        raise MovaError(f"{case.path}: {error}") from None


def schedules(case: GoldenCase) -> tuple[Schedule, Schedule]:
    """The schedule with equal shifts, and the one in which the audio has its own."""
    equal = schedule(case)
    return equal, schedule(case, equal.video_shift, number(case, "audio_shift", SCHEDULE["audio_shift"]))


def require_size(case: GoldenCase, name: str, stated: Any, tensor: str, found: Any) -> None:
    """MovaError where what a case states of a tensor's size is not its size."""
    if stated != found:
        told = f"{name} is {json.dumps(stated)}, but {tensor} has {json.dumps(found)}"
        raise MovaError(f"{case.path}: {told}")


def require_grid(case: GoldenCase, tensor: str) -> None:
    """The stated `grid` (frames, rows, columns of the video latents) is the tensor's."""
    latents: Tensor = case.tensors[tensor]
    require_size(case, "grid", case.parameter("grid"), tensor, list(latents.shape[-3:]))
