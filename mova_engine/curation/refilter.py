"""New verdicts from stored scores: other filters over the table of clips, without decoding or measuring anything."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mova_engine.config.captions import ROLES
from mova_engine.config.command import read_yaml
from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.clip_file import ClipFile, unmeasured
from mova_engine.curation.curation_folder import CurationFolder
from mova_engine.curation.filter_columns import scores_of
from mova_engine.curation.funnel import FUNNEL, Funnel, FunnelCounter, read_funnel
from mova_engine.curation.judging import Judging
from mova_engine.curation.verdicts import Judge
from mova_engine.errors import MovaError, counted, suggest
from mova_engine.files.atomic import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

# The name of the filter that --where gives.
WHERE = "where"
_READ = ("verdict", "dropped_by", "kind", "frames", "fps", "reasons")


@dataclass(frozen=True)
class Refiltered:
    """judging: what clips are judged by now. funnel: of the new verdicts. changes: {(verdict before, after): clips}.

    unmeasured: {score: clips that have neither its numbers nor a reason}, of the clips that are unknown now.
    """

    judging: Judging
    funnel: Funnel
    changes: Mapping[tuple[str, str], int]
    unmeasured: Mapping[str, int]


def changed_judging(
    judging: Judging, where: str | None, filters: Mapping[str, str], without: Sequence[str] = ()
) -> Judging:
    """What clips are to be judged by. where: one condition in place of all filters. filters: others by name, which take
    the place of those of the same names or come last. without: names of filters that are left out.

    MovaError for a condition that cannot be read and for a name that no filter has.
    """
    texts = {each.name: each.text for each in judging.judge.filters}
    for name in without:
        if name not in texts:
            raise MovaError(f"there is no filter '{name}'.{suggest(name, texts)} Known: {', '.join(texts) or 'none'}")
    texts = {name: text for name, text in texts.items() if name not in without}
    texts = (texts if where is None else {WHERE: where}) | dict(filters)
    marks = {each.name: each.text for each in judging.judge.marks}
    return replace(judging, judge=Judge.of(texts, marks, judging.judge.also))


def refilter(file: ClipFile, judging: Judging) -> Refiltered:
    """Judge all clips anew. Only the columns that the filters name are read, in pieces; nothing is written."""
    tally = _Tally(judging)
    columns = (*_READ, *judging.judge.columns)
    for table in file.tables(columns):
        tally.add(table)
    films = read_funnel(file.out).films
    return Refiltered(judging, tally.counter.funnel(films), tally.changes, tally.unmeasured)


def write_refiltered(file: ClipFile, found: Refiltered) -> None:
    """Make the new verdicts those of the run: clips.parquet, metadata.jsonl and funnel.json. MovaError where the run
    wrote its clips as files, of which there are none of clips that come back, and where it wrote captions and there are
    such clips.
    """
    config = CurationFolder(file.out).config
    settings: Mapping[str, Any] = read_yaml(config) if config.is_file() else {}
    written = str(settings.get("write", "none"))
    if written != "none":
        raise MovaError(f"{file.out} holds its clips as {written}: mova curate with these filters writes them anew")
    come_back = sum(count for (before, after), count in found.changes.items() if before != "keep" == after)
    if come_back and _captioned(settings.get("captions") or {}):
        raise MovaError(
            f"{file.out} has captions of its own, and {counted(come_back, 'clip')} that none were written of would be "
            "kept: mova curate with these filters writes them"
        )
    file.write(found.judging)
    write_atomic(file.out / FUNNEL, found.funnel.json())


def _captioned(settings: Mapping[str, Any]) -> bool:
    """Whether a run's settings ask for captions."""
    return any(each.get("url") for each in (settings, *(settings.get(role) or {} for role in ROLES)))


@dataclass
class _Tally:
    judging: Judging
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    unmeasured: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.counter = FunnelCounter([(each.name, each.text) for each in self.judging.judge.filters])

    def add(self, table: "pa.Table") -> None:
        import pyarrow as pa

        judged = self.judging.judge.verdict_columns(table)
        both = pa.table({"before": table["verdict"].cast(pa.string()), "after": judged["verdict"].cast(pa.string())})
        for row in both.group_by(["before", "after"]).aggregate([([], "count_all")]).to_pylist():
            self.changes[row["before"], row["after"]] += row["count_all"]
        plain = table.select(["kind", "frames", "fps"])
        for name in ("verdict", "dropped_by"):
            plain = plain.append_column(name, judged[name])
        self.counter.add(plain)
        unsure = table.filter(compute().equal(both["after"], "unknown"))
        for score in scores_of(column for each in self.judging.judge.filters for column in each.columns):
            self.unmeasured[score] += unmeasured(unsure, score)
