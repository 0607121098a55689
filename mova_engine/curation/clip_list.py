"""The list of kept clips, metadata.jsonl, which training reads from the films themselves."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mova_engine.curation.accepted_clips import AcceptedClip, unlistable, virtual_row
from mova_engine.curation.arrow_compute import compute

if TYPE_CHECKING:
    import pyarrow as pa

# Columns of clips.parquet that a line is made of.
LISTED = ("clip_id", "video_path", "start", "frames", "fps", "crop_x", "crop_y", "crop_width", "crop_height", "width",
          "height", "pad_width", "pad_height", "caption", "sound_shift", "gain_db")  # fmt: skip


def kept_clips(table: "pa.Table") -> "pa.Table":
    """The clips that no filter drops."""
    return table.filter(compute().equal(table["verdict"].cast("string"), "keep"))


def listed_clips(table: "pa.Table") -> "pa.Table":
    """Of the clips that are kept, those that are to be trained on: one whose captioning failed has no caption (null),
    which is told, and is not trained on with another.
    """
    return kept_clips(table.filter(table["caption"].is_valid()))


def list_lines(table: "pa.Table") -> Iterator[bytes]:
    """A line of JSON for each clip that is kept and can be listed, in the table's order, as `virtual_row` has it.

    table: with the columns of LISTED and verdict.
    """
    for batch in listed_clips(table.select([*LISTED, "verdict"])).to_batches(max_chunksize=65536):
        for row in batch.to_pylist():
            clip = AcceptedClip.of(row)
            if unlistable(clip, virtual=True) is None:
                yield (json.dumps(virtual_row(clip, row["frames"] / row["fps"]), ensure_ascii=False) + "\n").encode()
