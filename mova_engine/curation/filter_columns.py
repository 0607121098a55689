"""The columns that filters know: what is known of every clip, and the numbers of all scores."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from mova_engine.curation.cut_signals import SIGNAL_COLUMNS
from mova_engine.curation.units import KINDS
from mova_engine.scores.score_table import SCORES

ColumnKind = Literal["number", "text", "truth"]


@dataclass(frozen=True)
class FilterColumn:
    """A column of clips.parquet. score: the score that measures it; "": it is known of every clip, as
    far as the clip has it.

    low, high: the range of a number, None where it is open. values: those that a text can have, where they are known.
    late: known only when all clips are together.
    """

    name: str
    kind: ColumnKind
    about: str
    score: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] = ()
    late: bool = False


LABELS = (
    FilterColumn("clip_id", "text", "the clip's identity"),
    FilterColumn("source", "text", "the folder or list that the film came with"),
    FilterColumn("name", "text", "the film, as SOURCE/PATH"),
    FilterColumn("sha256", "text", "SHA-256 of the film"),
    FilterColumn("start", "number", "where the clip begins in the film", unit="s"),
    FilterColumn("frames", "number", "pictures of the clip"),
    FilterColumn("fps", "number", "pictures a second"),
    FilterColumn("width", "number", "width that is shown, after the crop", unit="px"),
    FilterColumn("height", "number", "height that is shown, after the crop", unit="px"),
    FilterColumn("kind", "text", "whether somebody speaks, and whether it holds a cut", values=KINDS),
    FilterColumn("shots", "number", "shots of the clip"),
    FilterColumn("duplicate_of", "text", "the clip that this one repeats", late=True),
)


@cache
def filter_columns() -> Mapping[str, FilterColumn]:
    """Every column by its name; a clip's own facts come before a score's number of the same name. What the cut measures
    in passing is known of every clip.
    """
    scores = (
        FilterColumn(
            column.name,
            "number",
            column.about,
            "" if column.name in SIGNAL_COLUMNS else score.name,
            column.unit,
            column.low,
            column.high,
        )
        for score in SCORES.values()
        for column in score.columns
    )
    return {column.name: column for column in (*scores, *LABELS)}


@cache
def columns_of(score: str) -> tuple[str, ...]:
    """The columns that measuring a score fills: without those that are known of every clip."""
    known = filter_columns()
    return tuple(column.name for column in SCORES[score].columns if known[column.name].score == score)


def scores_of(columns: Iterable[str]) -> tuple[str, ...]:
    """The scores that measure these columns, each once, in the order of the columns."""
    known = filter_columns()
    return tuple(dict.fromkeys(score for name in columns if (score := known[name].score)))
