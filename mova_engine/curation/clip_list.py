"""The list of kept clips, metadata.jsonl, which training reads from the films themselves."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mova_engine.curation.accepted_clips import LISTING, AcceptedClip, unlistable, virtual_row
from mova_engine.curation.arrow_compute import compute

if TYPE_CHECKING:
    import pyarrow as pa

LIST = LISTING
# Columns of clips.parquet that a line is made of.
LISTED = ("clip_id", "video_path", "start", "frames", "fps", "crop_x", "crop_y", "crop_width", "crop_height", "width",
          "height", "pad_width", "pad_height", "caption", "sound_shift", "gain_db")  # fmt: skip


def list_lines(table: "pa.Table") -> Iterator[bytes]:
    """A line of JSON for each clip that is kept and can be listed, in the table's order, as `virtual_row` has it.

    table: with the columns of LISTED and verdict.
    """
    kept = table.select([*LISTED, "verdict"]).filter(compute().equal(table["verdict"].cast("string"), "keep"))
    for batch in kept.to_batches(max_chunksize=65536):
        for row in batch.to_pylist():
            clip = AcceptedClip.of(row)
            if unlistable(clip, virtual=True) is None:
                yield (json.dumps(virtual_row(clip, row["frames"] / row["fps"]), ensure_ascii=False) + "\n").encode()
