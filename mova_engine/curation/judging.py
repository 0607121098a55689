"""All that clips are judged by, as a run has it, and as the table of its clips keeps it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mova_engine.config.curate import CurateConfig
from mova_engine.config.sound_correction import SoundCorrection
from mova_engine.curation.filter_columns import scores_of
from mova_engine.curation.sound_columns import SoundColumns
from mova_engine.curation.verdicts import Judge
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file

if TYPE_CHECKING:
    import pyarrow as pa

# Where clips.parquet keeps it, in the metadata of its schema.
_KEY = b"mova_curation"
# Columns that `Judging.columns` gives beside the marks.
JUDGED = ("verdict", "dropped_by", "sound_shift", "gain_db")


@dataclass(frozen=True)
class Judging:
    """judge: filters in the run's order, marks, what is measured beside. sound: how the sound is corrected."""

    judge: Judge
    sound: SoundColumns

    @classmethod
    def of(cls, config: CurateConfig, order: Sequence[str] | None = None) -> "Judging":
        """Read a run's settings. order: that of the filters, by name. MovaError for what cannot be read."""
        sound = SoundColumns.of(config.sound)
        also = (*config.also, *scores_of(sound.columns))
        return cls(Judge.of(config.filters, config.marks, also, order), sound)

    def columns(self, table: "pa.Table") -> "dict[str, pa.Array | pa.ChunkedArray]":
        """The columns of JUDGED and of the marks for each row of a table of clips."""
        verdicts = self.judge.verdict_columns(table)
        return {name: verdicts[name] for name in verdicts.column_names} | self.sound.of_table(table)

    def metadata(self) -> dict[bytes, bytes]:
        """What the table's schema keeps of it, for `judging_of`."""
        told = {
            "filters": [[each.name, each.text] for each in self.judge.filters],
            "marks": [[each.name, each.text] for each in self.judge.marks],
            "also": list(self.judge.also),
            "sound": asdict(self.sound.settings),
        }
        return {_KEY: json.dumps(told, sort_keys=True).encode()}


def judging_of(schema: "pa.Schema", path: Path) -> Judging:
    """What the clips of a table were judged by. path: for errors. MovaError where the table does not tell it."""
    try:
        told = json.loads((schema.metadata or {})[_KEY])
        sound = SoundColumns.of(SoundCorrection(**told["sound"]))
        return Judging(Judge.of(dict(told["filters"]), dict(told["marks"]), told["also"]), sound)
    except (KeyError, ValueError, TypeError):
        raise MovaError(f"{path} is no table of clips that mova curate wrote") from None


def read_order(path: Path) -> tuple[str, ...]:
    """The filters' names in a file as `mova curate report` writes it: a line each, the first one first; what follows
    "#" is a comment. MovaError for a file that cannot be read or names none.
    """
    require_file(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise MovaError(f"{path}: cannot be read ({error})") from None
    names = tuple(name for line in lines if (name := line.partition("#")[0].strip()))
    if not names:
        raise MovaError(f"{path} names no filter: it wants a line for each")
    return names
