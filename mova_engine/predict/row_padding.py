"""Rows that FSDP2 adds to a weight, so that each of the ranks that share it holds equally many.

A weight of n rows takes ceil(n / ranks) rows on each rank, and all ranks' rows together where it is gathered or its
gradient is summed. A block's modulation, [1, 6, dim], is one row: with 1,024 ranks its gathered copy is 1,024 rows,
63 MB in bfloat16 at the released width.
"""

from mova_engine.config.model import TowerConfig
from mova_engine.predict.job import PlannedRun, sharded

# Of a block: square matrices of self- and cross-attention; vectors of their width.
_SQUARE, _VECTORS = 8, 15


def block_padding(tower: TowerConfig, ranks: int) -> int:
    """Weights that are added to a tower's block in all."""

    def added(rows: int) -> int:
        return -(-rows // ranks) * ranks - rows

    dim, wide = tower.dim, tower.ffn_dim
    attention = added(dim) * (_SQUARE * dim + _VECTORS)
    feed_forward = added(wide) * (dim + 1) + added(dim) * wide
    return attention + feed_forward + added(1) * 6 * dim


def padding(run: PlannedRun, used: bool) -> int:
    """Weights that are added to all blocks. used: those of one step; else with both video experts."""
    ranks, model = sharded(run.layout), run.job.model
    towers = {"video_dit": model.video, "audio_dit": model.audio}
    experts = 1 if used else model.experts
    return sum(
        block_padding(tower, ranks) * tower.num_layers * (experts if name == "video_dit" else 1)
        for name, tower in towers.items()
        if name in run.job.components
    )
