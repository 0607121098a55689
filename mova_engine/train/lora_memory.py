"""Settings of memory for a run of adapters where they are left to the planner."""

from dataclasses import replace

from mova_engine.backend import Backend
from mova_engine.config.train import TrainConfig
from mova_engine.distributed.processes import Processes
from mova_engine.inference.loading import stored_base
from mova_engine.memory.chosen_memory import ChosenMemory, choose_memory
from mova_engine.predict.job import layout_of, training_job
from mova_engine.train.lora_model import base_folder
from mova_engine.train.model_setup import largest_clip, model_config


def choose_for_adapters(config: TrainConfig, backend: Backend, processes: Processes) -> ChosenMemory | None:
    """What `memory.chosen_memory` chooses for a run; None where its settings leave nothing open and there is no limit.
    All processes call it. Only headers of the base's files are read. Raises MovaError if nothing fits.
    """
    if not config.memory.undecided and config.vram is None and config.ram is None:
        return None
    sizes = largest_clip(config, model_config(config))
    job = replace(training_job(config, sizes), base=stored_base(base_folder(config), sizes))

    def least(value: int) -> int:
        return min(processes.all_gather_object(value))

    layout = layout_of(processes.shape, config.parallel.shard)
    return choose_memory(config.memory, job, layout, backend, vram=config.vram, ram=config.ram, least=least)
