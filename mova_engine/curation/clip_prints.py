"""Fingerprints as a step of a unit's work: of clips that no filter drops, since repetitions of others do not matter."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mova_engine.curation.duplicates import duplicates_of
from mova_engine.curation.filter_columns import filter_columns
from mova_engine.curation.filter_expression import FilterExpression
from mova_engine.curation.fingerprints import clip_fingerprint
from mova_engine.curation.funnel import Funnel
from mova_engine.curation.ledger import CLIP, LedgerStep, Row
from mova_engine.scores.decoded_clip import DecodedClip

if TYPE_CHECKING:
    import pyarrow as pa

    from mova_engine.curation.judging import Judging

# The column that asks for them, and the step's name.
DUPLICATE, PRINTS = "duplicate_of", "fingerprints"
# {clip_id: its fingerprints of pictures and of sound}, as `prints_of` has them.
Prints = Mapping[str, tuple[str | None, str | None]]
_NONE = (None, None)
# Rises when the same clip gets other fingerprints.
_VERSION = 1


def prints_step() -> LedgerStep:
    """The step, which depends on nothing but its version."""
    return LedgerStep.made_of(PRINTS, {"version": _VERSION})


def prints_of(clip: DecodedClip) -> Row:
    """{"pictures", "sound"}: a clip's fingerprints as text, None where there is none."""
    found = clip_fingerprint(clip)
    return {"pictures": found.pictures, "sound": found.sound}


def is_late(condition: FilterExpression) -> bool:
    """Whether it can be decided only when all clips are together, by their fingerprints."""
    return any(filter_columns()[name].late for name in condition.columns)


def printed_clips(funnel: Funnel, filters: Sequence[FilterExpression]) -> int:
    """How many clips of a run have fingerprints: those that no filter drops that is decided before. filters: in the
    funnel's order.
    """
    late = {each.name for each in filters if is_late(each)}
    return funnel.clips - sum(each.dropped for each in funnel.filters if each.name not in late)


def with_duplicates(table: "pa.Table", prints: Prints, judging: "Judging") -> "pa.Table":
    """A table of clips with its column DUPLICATE filled: among clips that no other filter drops.

    prints: of the clips that have them.
    """
    import pyarrow as pa

    verdicts = judging.columns(table)["verdict"].cast(pa.string()).to_pylist()
    ids, widths, heights = (table[name].to_pylist() for name in (CLIP, "width", "height"))
    alive = [i for i, clip in enumerate(ids) if verdicts[i] != "drop" and prints.get(clip, _NONE)[0]]
    better = duplicates_of(
        [ids[i] for i in alive],
        [prints[ids[i]][0] for i in alive],
        [prints[ids[i]][1] for i in alive],
        [float(widths[i] * heights[i]) for i in alive],
    )
    found: list[Any] = [None] * len(ids)
    for i, clip in zip(alive, better, strict=True):
        found[i] = clip
    return _replaced(table, found)


def _replaced(table: "pa.Table", values: Sequence[Any]) -> "pa.Table":
    import pyarrow as pa

    return table.set_column(table.column_names.index(DUPLICATE), DUPLICATE, pa.array(values, pa.string()))
