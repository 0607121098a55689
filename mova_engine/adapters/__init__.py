"""Low-rank adapters (LoRA) in the formats of many tools: reading, writing, training, merging, extracting, combining."""

from mova_engine.adapters.lora import add_lora, load_lora, lora_parameters, merged_lora, remove_lora, save_lora
from mova_engine.adapters.merge import merge_folder

__all__ = ["add_lora", "load_lora", "lora_parameters", "merge_folder", "merged_lora", "remove_lora", "save_lora"]
