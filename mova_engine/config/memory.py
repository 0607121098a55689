"""Where tensors live and what is computed again: settings that trainer and planner share."""

# What the backward pass computes again: nothing; every layer; every layer without video self-attention and without
# exchanges between processes; the same, but exchanging queries, keys and values again. In order of memory taken.
CHECKPOINTING = ("none", "selective", "out", "full")
