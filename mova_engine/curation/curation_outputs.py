"""What a run leaves when all units are done: the table of clips, captions, kept clips, the funnel, failures."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mova_engine.config.curate import CurateConfig
from mova_engine.curation.accepted_clips import AcceptedClip
from mova_engine.curation.captions.captioning import caption_clips
from mova_engine.curation.captions.clip_captioner import Caption
from mova_engine.curation.clip_file import with_columns
from mova_engine.curation.clip_list import kept_clips, listed_clips
from mova_engine.curation.clip_prints import with_duplicates
from mova_engine.curation.collect import Collected, write_table
from mova_engine.curation.curation_folder import CurationFolder
from mova_engine.curation.funnel import FUNNEL, FilmCounts, Funnel, funnel_of
from mova_engine.curation.judging import Judging
from mova_engine.curation.written_clips import write_accepted
from mova_engine.data.text import shown
from mova_engine.errors import counted
from mova_engine.files.atomic import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

# Clips between two lines about captions and written clips.
_EVERY = 100


@dataclass(frozen=True)
class Failure:
    """A unit, a film of which no unit could be made, or a clip without caption or file: why, and after how many
    attempts.
    """

    name: str
    step: str
    reason: str
    attempts: int

    def line(self) -> str:
        """As people read it."""
        tries = counted(self.attempts, "attempt")
        return f"{shown(self.name)}: failed in {self.step} after {tries}: {shown(self.reason)}"

    def json(self) -> str:
        """A line of a file."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class CurationOutputs:
    """Writes them. say: takes the lines that tell how far it is."""

    folder: CurationFolder
    config: CurateConfig
    judging: Judging
    say: Callable[[str], None]

    def write(self, collected: Collected, films: int, units: int, failures: Sequence[Failure]) -> tuple[Funnel, int]:
        """Judge, caption and write all clips; returns the funnel, and how many kept clips have no caption or no file.
        films, units: of which failures are the failed ones.
        """
        duplicates = with_duplicates(collected.table, collected.prints, self.judging)
        table, uncaptioned = self._captioned(with_columns(duplicates, self.judging))
        write_table(table, self.folder.clips)
        unlisted = [*uncaptioned, *self._written(table)]
        write_atomic(self.folder.failures, "".join(each.json() for each in (*failures, *unlisted)).encode())
        counts = FilmCounts(films, units, len(failures), round(collected.seconds, 6))
        filters = [(each.name, each.text) for each in self.judging.judge.filters]
        funnel = funnel_of([table], filters, counts)
        write_atomic(self.folder.out / FUNNEL, funnel.json())
        return funnel, len(unlisted)

    def _captioned(self, table: "pa.Table") -> "tuple[pa.Table, list[Failure]]":
        """The table with captions of kept clips in place of those that came with their films, if any are wanted; null
        where a clip's captioning failed.
        """
        import pyarrow as pa

        if not self.config.captions.wanted:
            return table, []
        rows = kept_clips(table).to_pylist()
        done = _Counter("captioned", len(rows), self.say)
        found = caption_clips(rows, self.config.captions, self.folder.out, done)
        failures = [Failure(each.clip, "caption", each.reason, 1) for each in found.values() if each.text is None]
        texts = [
            given if (caption := found.get(clip)) is None else caption.text
            for clip, given in zip(table["clip_id"].to_pylist(), table["caption"].to_pylist(), strict=True)
        ]
        place = table.column_names.index("caption")
        return table.set_column(place, "caption", pa.array(texts, pa.string())), failures

    def _written(self, table: "pa.Table") -> Iterator[Failure]:
        """Write the clips that are kept, or the list of them alone; yields those that cannot be."""
        config = self.config
        clips = [AcceptedClip.of(row) for row in listed_clips(table).to_pylist()]
        done = _Counter("written", len(clips), self.say)
        refused = write_accepted(
            self.folder.out,
            clips,
            config.shape,
            config.write,
            config.written,
            workers=config.workers,
            retry=config.retry,
            progress=lambda count, total: done.at(count),
        )
        for clip, reason in refused.items():
            yield Failure(clip, "write", reason, 1)


class _Counter:
    """Tells now and then how many clips are done."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]) -> None:
        self._what, self._total, self._say, self._done = what, total, say, 0

    def __call__(self, caption: Caption) -> None:
        self.at(self._done + 1)

    def at(self, done: int) -> None:
        """So many are done."""
        self._done = done
        if done % _EVERY == 0 or done == self._total:
            self._say(f"{self._what} [{done}/{self._total}]")
