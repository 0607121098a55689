"""What a rehearsal refuses before it builds anything."""

from pathlib import Path

import pytest

from mova_engine.config.memory import MemoryConfig
from mova_engine.config.recipes import load_config
from mova_engine.config.sample import SampleConfig
from mova_engine.errors import MovaError
from mova_engine.inference.dry_run import dry_run_sampling
from mova_engine.ops.machine import assumed_machine
from mova_engine.train.dry_run import dry_run_training


@pytest.mark.parametrize("where", ["host", "files"])
def test_layers_that_come_one_by_one_are_not_rehearsed(where):
    machine = assumed_machine("cuda", "sm90")
    memory = {"weights": where, "checkpointing": "full"}
    with pytest.raises(MovaError, match=f"memory.weights {where}: layers that come one by one are not rehearsed yet"):
        dry_run_training(load_config("lora", memory=memory), machine)
    config = SampleConfig(checkpoint=Path("mova-360p"), memory=MemoryConfig(weights=where), prompt=("clip",))
    with pytest.raises(MovaError, match=f"memory.weights {where}: layers that come one by one are not rehearsed yet"):
        dry_run_sampling(config, machine)
