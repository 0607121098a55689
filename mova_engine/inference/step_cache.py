"""The step cache: reads what `mova calibrate` measured, and plans which steps reuse the video's velocity.

A calibration belongs to one model, clip size, list of noise levels, solver and guidance; for others it is refused.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mova_engine.adapters.reading import read_adapter
from mova_engine.checkpoints.fingerprint import fingerprint
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.command import to_plain
from mova_engine.config.model import ClipConfig
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError
from mova_engine.files.results import read_result
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.step_calibration import GUIDED
from mova_engine.inference.step_plan import StepPlan, least_error, must_run
from mova_engine.inference.video_passes import phases

KIND = "step-cache"


def key_of(
    folder: Path,
    clip: ClipConfig,
    settings: SampleSettings,
    schedule: Schedule,
    lora: Sequence[AdapterSpec] = (),
    attention: str = "exact",
) -> dict[str, Any]:
    """What a calibration belongs to, as JSON holds it, by the words in which a difference is told. Raises MovaError for
    adapters that cannot be read.
    """
    guidance = {f"guidance {name}": value for name, value in asdict(settings.guidance).items()}
    key = {
        "checkpoint": fingerprint(folder),
        "frames": clip.frames,
        "height": clip.height,
        "width": clip.width,
        "fps": clip.fps,
        "steps": settings.count,
        "solver": settings.solver,
        "sigmas": settings.sigmas,
        "audio sigmas": settings.audio_sigmas,
        "switch": settings.switch,
        "video shift": schedule.video_shift,
        "audio shift": schedule.audio_shift,
        "boundary": schedule.boundary,
        **guidance,
        "negative prompt": settings.negative_prompt,
        "attention": attention,
        "adapters": [{"content": _content(each), "strength": each.strength} for each in lora],
    }
    return to_plain(key)


def _content(spec: AdapterSpec) -> str:
    return read_adapter(spec.path, part=spec.part, alpha=spec.alpha).content


def check_key(path: Path, found: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """MovaError that names the first difference between a calibration's key and that of a run."""
    for name, value in key.items():
        if name not in found or found[name] != value:
            raise MovaError(
                f"{path} was calibrated for {'other' if name == 'adapters' else 'another'} {name}: {found.get(name)}, "
                f"this run has {value}; run mova calibrate with the options of this run"
            )


def planned(
    path: Path, key: Mapping[str, Any], speedup: float, settings: SampleSettings, schedule: Schedule, of: int
) -> StepPlan:
    """The plan of least error for a speed-up of the video tower, by the calibration in `path`.

    key: of the run (`key_of`). of: how many experts the model has. Raises MovaError for a file that is missing, damaged
    or of another key, and for a speed-up that no plan reaches.
    """
    if not path.exists():
        raise MovaError(f"the step cache needs {path}, which mova calibrate writes; or name a file by --cache-file")
    content = read_result(path)
    if content["kind"] != KIND:
        raise MovaError(f"{path} was not written by mova calibrate: it is a result of kind '{content['kind']}'")
    try:
        check_key(path, content["key"], key)
        errors = {
            (int(row["from"]), int(row["step"])): (float(row["video"][GUIDED]), float(row["audio"][GUIDED]))
            for row in content["errors"]
        }
        if not all(0 <= value < math.inf for pair in errors.values() for value in pair):
            raise ValueError("an error is no finite number")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MovaError(f"{path} is damaged ({error!r}): run mova calibrate again") from None
    experts, guidance = settings.noise_levels(schedule).experts, settings.guidance
    count = len(experts)
    places = [step / count for step in range(count)]
    cost = [guidance.at(place).evaluations for place in places]

    def error_of(before: int, step: int) -> float | None:
        pair = errors.get((before, step))
        return None if pair is None else sum(pair)

    reused = least_error(cost, must_run(phases(guidance, places, experts, of)), error_of, speedup)
    sums, run = [0.0, 0.0], 0
    for step in range(count):
        if step not in reused:
            run = step
            continue
        for i, value in enumerate(errors[run, step]):
            sums[i] += value
    return StepPlan(reused, count, sum(cost[s] for s in range(count) if s not in reused), sum(cost), *sums)
