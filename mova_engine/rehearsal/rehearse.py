"""--dry-run of the trainer and the sampler: runs the step in a child process and formats the report."""

import json
from typing import Any

from mova_engine.config.command import split_names, to_plain
from mova_engine.config.rehearsal import RehearsalOptions
from mova_engine.errors import MovaError
from mova_engine.ops.machine import Machine, assumed_machine
from mova_engine.rehearsal.child import in_child
from mova_engine.rehearsal.result import Rehearsal

# The machine that is assumed for a device without --assume.
_USUAL = {"cuda": "sm90", "npu": "910a2"}


def dry_run(target: str, config: Any, options: RehearsalOptions) -> str:
    """The report of a dry run, as text or as a JSON object. Raises MovaError for whatever the run would refuse."""
    if config.device is None:
        raise MovaError("--dry-run tries a device that need not be here: say which with --device cuda, npu or cpu")
    values = rehearse(target, config, config.device, options)
    return json.dumps(values) if options.json else str(Rehearsal.from_dict(values))


def rehearse(
    target: str, config: Any, device: str, options: RehearsalOptions, layers: int | None = None
) -> dict[str, Any]:
    """Run `target` ("module:function") on `config` in a child process and return the values of its `Rehearsal`.

    layers: the number of layers of each tower; None: all.
    """
    machine = _described(device, options)
    job = {"settings": to_plain(config), "machine": machine, "world_size": options.world_size, "layers": layers}
    job["stored"] = options.stored
    if options.clock is not None:
        job["clock"] = options.clock
    return in_child(target, device, job)


def assumed(device: str, options: RehearsalOptions) -> Machine:
    """The machine that a dry run assumes."""
    return assumed_machine(**_described(device, options))


def _described(device: str, options: RehearsalOptions) -> dict[str, Any]:
    packages = split_names(options.packages)
    return {"device": device, "capability": options.assume or _USUAL.get(device), "packages": packages}
