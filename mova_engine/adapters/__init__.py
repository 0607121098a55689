"""Low-rank adapters (LoRA): attaching, reading, writing, merging."""
