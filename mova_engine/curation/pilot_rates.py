"""What a run of one's own tells of larger ones: seconds a clip, shares, bytes."""

from collections import Counter
from pathlib import Path

from mova_engine.curation.clip_file import CLIPS, ClipFile, unmeasured
from mova_engine.curation.clip_prints import PRINTS, printed_clips
from mova_engine.curation.curation_folder import CurationFolder
from mova_engine.curation.filter_columns import filter_columns
from mova_engine.curation.funnel import read_funnel
from mova_engine.curation.stage_seconds import seconds_by_step
from mova_engine.curation.unit_steps import CUT, DECODE
from mova_engine.errors import MovaError, counted
from mova_engine.predict.curation_cost import CurationRates, CurationStage, known_costs


def pilot_rates(out: Path, *, write: bool) -> CurationRates:
    """The rates of a run's folder. MovaError where it has no clips or no timings."""
    file, funnel, seconds = ClipFile.open(out), read_funnel(out), seconds_by_step(out)
    if not funnel.clips or CUT not in seconds:
        raise MovaError(f"{out} has no {'timings' if funnel.clips else 'clips'}, from which more could be predicted")
    measured = Counter[str]()
    columns = [name for name, column in filter_columns().items() if column.score in seconds]
    for table in file.tables(["reasons", *columns]):
        for step in seconds:
            measured[step] += table.num_rows - unmeasured(table, step)
    if PRINTS in seconds:
        measured[PRINTS] = printed_clips(funnel, file.judging.judge.filters)
    read = max((measured[step] for step in seconds if step not in (CUT, DECODE)), default=0)
    measured |= {CUT: funnel.clips, DECODE: read}
    stages = [
        CurationStage(each.step, each.per_clip, measured[each.step] / funnel.clips, each.device != "cpu")
        for each in sorted(seconds.values(), key=lambda each: (each.step != CUT, each.step != DECODE))
    ]
    kept, costs = funnel.verdicts["keep"] / funnel.clips, known_costs()
    if write:
        stages.append(CurationStage("write", costs["seconds"]["write"], kept))
    ledger = sum(path.stat().st_size for path in CurationFolder(out).ledger.folder.rglob("*.parquet"))
    return CurationRates(
        clips=funnel.clips / (funnel.films.seconds / 3600),
        clip_seconds=sum(funnel.seconds.values()) / funnel.clips,
        kept=kept,
        stages=tuple(stages),
        ledger_bytes=ledger / funnel.clips,
        table_bytes=(out / CLIPS).stat().st_size / funnel.clips,
        written_bytes=costs["bytes"]["written"],
        source=f"the pilot run {out}: {counted(funnel.clips, 'clip')} of {counted(funnel.films.films, 'film')}",
    )
