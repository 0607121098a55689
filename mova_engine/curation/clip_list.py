"""The list of kept clips, metadata.jsonl, which training reads from the films themselves."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mova_engine.curation.arrow_compute import compute

if TYPE_CHECKING:
    import pyarrow as pa

LIST = "metadata.jsonl"
# Columns of clips.parquet that a line is made of.
LISTED = ("clip_id", "video_path", "start", "crop_x", "crop_y", "crop_width", "crop_height", "caption", "sound_shift",
          "gain_db")  # fmt: skip


def list_lines(table: "pa.Table") -> Iterator[bytes]:
    """A line of JSON for each clip that is kept, in the table's order. table: with the columns of LISTED and verdict.

    Keys are those of manifests; crop, sound_shift and gain_db only where something is to be done.
    """
    kept = table.select([*LISTED, "verdict"]).filter(compute().equal(table["verdict"].cast("string"), "keep"))
    for batch in kept.to_batches(max_chunksize=65536):
        for row in batch.to_pylist():
            line = {
                "video_path": row["video_path"],
                "caption": row["caption"] or "",
                "start": row["start"],
                "id": row["clip_id"],
            }
            if row["crop_x"] is not None:
                line["crop"] = [row[f"crop_{side}"] for side in ("x", "y", "width", "height")]
            line |= {name: row[name] for name in ("sound_shift", "gain_db") if row[name]}
            yield (json.dumps(line, ensure_ascii=False) + "\n").encode()
