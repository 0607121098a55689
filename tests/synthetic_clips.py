"""Folders as `mova curate` leaves them, with drawn numbers: for what reads the table of clips, at any size."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mova_engine.config.sound_correction import SoundCorrection
from mova_engine.curation.accepted_clips import LISTING
from mova_engine.curation.clip_file import CLIPS, with_columns
from mova_engine.curation.clip_list import list_lines
from mova_engine.curation.funnel import FUNNEL, FilmCounts, funnel_of
from mova_engine.curation.judging import Judging
from mova_engine.curation.sound_columns import SoundColumns
from mova_engine.curation.units import KINDS
from mova_engine.curation.verdicts import Judge

FILTERS = {
    "audible": "silence <= 0.8",
    "moving": "still_share <= 0.9",
    "unique": "duplicate_of is None",
    "agreeing": "desync <= 0.5 or imagebind >= 0.2",
    "lips": "kind in ('other-shot', 'other-cuts') or face_tracks == 0 or (lse_d <= 9.5 and lse_c >= 4.5)",
}
# Of each number: its lowest and highest value, and the share of clips that have none.
NUMBERS = {
    "silence": (0, 1, 0.02),
    "clipping": (0, 0.02, 0.02),
    "band_edge": (2000, 20000, 0.02),
    "lufs": (-50, -5, 0.02),
    "still_share": (0, 1, 0),
    "motion": (0, 2, 0),
    "desync": (0, 2, 0.1),
    "imagebind": (-0.1, 0.6, 0),
    "face_tracks": (0, 2.99, 0),
    "lse_d": (6, 12, 0.3),
    "lse_c": (1, 9, 0.3),
    "lse_offset": (-15, 15, 0.3),
}
# Why numbers are missing: {number: (its score, whether silent clips have it too, reason)}.
_WHY = {
    "silence": ("sound-quality", True, "there is no sound"),
    "desync": ("desync", False, "the clip is too short for it"),
    "lse_d": ("lip-sync", False, "no picture has a face"),
}


def synthetic_judging(filters=None, marks=None, **sound) -> Judging:
    judge = Judge.of(FILTERS if filters is None else filters, {"loud": "lufs > -10"} if marks is None else marks)
    return Judging(judge, SoundColumns.of(SoundCorrection(**{"shift": "lse_offset / 25", "lufs": -23.0} | sound)))


def synthetic_rows(count: int, seed: int = 0) -> pa.Table:
    """Clips without verdicts. Of clips that are silent nothing dear was measured, as a run leaves them."""
    rng = np.random.default_rng(seed)
    film = np.sort(rng.integers(0, max(1, count // 50), count))
    names = pa.array([f"films/{i:07d}.mp4" for i in range(film.max() + 1)])
    digests = pa.array([f"{i:064x}" for i in range(film.max() + 1)])
    index = pa.array(film)
    ids = np.frombuffer(rng.bytes(12 * count), np.uint8).reshape(count, 12)
    columns = {
        "clip_id": pa.array([row.tobytes().hex() for row in ids]),
        "source": pa.repeat(pa.scalar("films"), count),
        "name": names.take(index),
        "video_path": names.take(index),
        "sha256": digests.take(index),
        "start": pa.array(np.round(rng.random(count) * 600, 6)),
        "frames": pa.repeat(pa.scalar(193), count),
        "fps": pa.repeat(pa.scalar(24.0), count),
        **{f"crop_{side}": pa.nulls(count, pa.int64()) for side in ("x", "y", "width", "height")},
        "pad_width": pa.nulls(count, pa.int64()),
        "pad_height": pa.nulls(count, pa.int64()),
        "width": pa.repeat(pa.scalar(1280), count),
        "height": pa.repeat(pa.scalar(720), count),
        "kind": pa.array(np.array(KINDS)[rng.integers(0, 4, count)]),
        "shots": pa.array(rng.integers(1, 4, count)),
        "caption": pa.array([""] * count, pa.string()),
        "duplicate_of": pa.array(["0" * 24] * count, mask=rng.random(count) > 0.03),
    }
    told: dict[str, np.ndarray] = {}
    silent = rng.random(count) < 0.1
    for name, (low, high, without) in NUMBERS.items():
        values = rng.uniform(low, high, count)
        absent = rng.random(count) < without if name not in ("lse_c", "lse_offset") else told["lse_d"]
        absent = told["silence"] if name in ("clipping", "band_edge", "lufs") else absent
        told[name] = absent
        unmeasured = silent if name in ("desync", "imagebind", "face_tracks", "lse_d", "lse_c", "lse_offset") else False
        if name == "silence":
            values = np.where(silent, 0.9, values * 0.8)
        if name == "face_tracks":
            values = np.floor(values)
        columns[name] = pa.array(values, mask=absent | unmeasured)
    columns["reasons"] = _reasons({score: told[name] & (~silent | free) for name, (score, free, _) in _WHY.items()})
    return pa.table(columns)


def _of_film(rows: pa.Table, path: Path) -> pa.Table:
    """The rows as clips of two seconds of one film, from its first seconds."""
    count = rows.num_rows
    told = {"video_path": [str(path)] * count, "start": [float(i % 5) for i in range(count)], "frames": [48] * count}
    for name, values in told.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    return rows


def _reasons(missing: dict[str, np.ndarray]) -> pa.Array:
    """JSON text of each clip: why it lacks a score's numbers."""
    words = {score: why for score, _, why in _WHY.values()}
    code = sum(absent.astype(int) << i for i, absent in enumerate(missing.values()))
    known = [
        json.dumps({score: words[score] for i, score in enumerate(missing) if number >> i & 1})
        for number in range(1 << len(missing))
    ]
    return pa.array(known).take(pa.array(code))


def write_run(out: Path, count: int, judging: Judging | None = None, *, piece=1 << 20, films=None, path=None) -> None:
    """A run's folder: clips.parquet, metadata.jsonl, funnel.json. path: the film that all clips are from."""
    judging = judging or synthetic_judging()
    out.mkdir(parents=True, exist_ok=True)
    writer, funnels = None, []
    with open(out / LISTING, "wb") as lines:
        for seed, start in enumerate(range(0, count, piece)):
            rows = synthetic_rows(min(piece, count - start), seed)
            table = with_columns(rows if path is None else _of_film(rows, path), judging)
            writer = writer or pq.ParquetWriter(out / CLIPS, table.schema, compression="zstd", compression_level=1)
            writer.write_table(table)
            funnels.append(table.select(["verdict", "dropped_by", "kind", "frames", "fps"]))
            lines.writelines(list_lines(table))
    writer.close()
    filters = [(each.name, each.text) for each in judging.judge.filters]
    films = films or FilmCounts(max(1, count // 50), max(1, count // 50), 0, count * 10.0)
    (out / FUNNEL).write_bytes(funnel_of(funnels, filters, films).json())
