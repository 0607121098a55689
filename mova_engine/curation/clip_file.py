"""The table of all clips of a run, clips.parquet: read piece by piece, and written anew with other verdicts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mova_engine.curation.accepted_clips import LISTING
from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.clip_list import list_lines
from mova_engine.curation.filter_columns import filter_columns
from mova_engine.curation.judging import JUDGED, Judging, judging_of
from mova_engine.errors import MovaError, suggest
from mova_engine.files.atomic import require_file, whole_file

if TYPE_CHECKING:
    import pyarrow as pa

CLIPS = "clips.parquet"
# Rows in memory at once, about.
_ROWS = 1 << 20


@dataclass(frozen=True)
class ClipFile:
    """A run's table of clips. names: of its columns; judging: what its clips were judged by. Rows are read later."""

    out: Path
    names: tuple[str, ...]
    rows: int
    judging: Judging

    @classmethod
    def open(cls, out: Path) -> "ClipFile":
        """MovaError where the folder has no such table, or a damaged one."""
        path = out / CLIPS
        if not out.is_dir():
            raise MovaError(f"{out}: not a folder that mova curate wrote")
        if not path.exists():
            raise MovaError(f"{out} has no {CLIPS}: mova curate RAW --out {out} writes it")
        file = _opened(path)
        schema = file.schema_arrow
        found = cls(out, tuple(schema.names), file.metadata.num_rows, judging_of(schema, path))
        file.close()
        return found

    def tables(self, columns: Sequence[str] | None = None) -> "Iterator[pa.Table]":
        """The rows in pieces of about a million. columns: those that are read, if they are there; default: all."""
        import pyarrow as pa

        path = self.out / CLIPS
        names = None if columns is None else [name for name in dict.fromkeys(columns) if name in self.names]
        file = _opened(path)
        try:
            for groups in _pieces(file):
                yield file.read_row_groups(groups, columns=names)
        except (OSError, pa.ArrowException) as error:
            raise MovaError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
        finally:
            file.close()

    def find(self, clip: str) -> dict[str, Any]:
        """The row of a clip, by its identity or the beginning of it. MovaError where none, or several, begin so."""
        found: list[dict[str, Any]] = []
        for table in self.tables(["clip_id"]):
            same = table.filter(compute().starts_with(table["clip_id"], clip.lower()))
            found += same.slice(0, 3).to_pylist()
        ids = [row["clip_id"] for row in found]
        if not ids:
            some = [row["clip_id"] for table in self.tables(["clip_id"]) for row in table.slice(0, 2000).to_pylist()]
            raise MovaError(f"no clip of {self.out} begins with '{clip}'.{suggest(clip, some)}")
        if len(ids) > 1 and clip not in ids:
            raise MovaError(f"several clips of {self.out} begin with '{clip}': {', '.join(ids[:3])}; give more of it")
        wanted = clip if clip in ids else ids[0]
        for table in self.tables():
            rows = table.filter(compute().equal(table["clip_id"], wanted)).to_pylist()
            if rows:
                return rows[0]
        raise MovaError(f"{self.out / CLIPS} changed while it was read: try again")

    def write(self, judging: Judging) -> None:
        """Write the table anew with other verdicts, and the list of kept clips. Each is whole or as it was before."""
        import pyarrow.parquet as pq

        stale = {*JUDGED, *(mark.name for mark in self.judging.judge.marks)}
        kept = [name for name in self.names if name not in stale]
        with (
            whole_file(self.out / LISTING) as listed,
            whole_file(self.out / CLIPS) as fresh,
            open(listed, "wb") as lines,
        ):
            writer: Any = None
            for table in self.tables(kept):
                judged = with_columns(table, judging)
                writer = writer or pq.ParquetWriter(fresh, judged.schema, compression="zstd", compression_level=1)
                writer.write_table(judged)
                lines.writelines(list_lines(judged))
            writer.close()


def with_columns(table: "pa.Table", judging: Judging) -> "pa.Table":
    """A table of clips without verdicts, with them, and with the record of what they are by."""
    for name, values in judging.columns(table).items():
        table = table.append_column(name, values)
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **judging.metadata()})


def unmeasured(table: "pa.Table", score: str) -> int:
    """Of how many clips a score was not measured: they have neither a number of it nor a reason why there is none."""
    import pyarrow as pa

    pc = compute()
    missing = pa.repeat(pa.scalar(True), table.num_rows)
    for name, column in filter_columns().items():
        if column.score == score and name in table.column_names:
            missing = pc.and_(missing, pc.is_null(table[name]))
    if "reasons" in table.column_names:
        told = pc.fill_null(pc.match_substring(table["reasons"], f'"{score}":'), False)
        missing = pc.and_not(missing, told)
    return pc.sum(missing).as_py() or 0


def _opened(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path)
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise MovaError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _pieces(file: Any) -> Iterator[list[int]]:
    """Numbers of row groups that are read together."""
    together, rows = [], 0
    for i in range(file.metadata.num_row_groups):
        together.append(i)
        rows += file.metadata.row_group(i).num_rows
        if rows >= _ROWS:
            yield together
            together, rows = [], 0
    if together or file.metadata.num_row_groups == 0:
        yield together
