"""The clips of a run's buckets as one data set. Each batch is of one bucket, and so is each optimizer step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mova_engine.config.buckets import bucket_name, clip_tokens
from mova_engine.config.mesh import lengths_of
from mova_engine.config.model import ClipConfig
from mova_engine.data.bucket_choice import Kept
from mova_engine.data.clip_buckets import SortedClips
from mova_engine.data.dataset import LatentDataset
from mova_engine.data.mixture import MixedClips, MixedSet, apportioned
from mova_engine.errors import counted


class BucketRow(NamedTuple):
    """A row of `bucket_table`: a bucket's name and shape, how many clips it has, and what it keeps of them."""

    name: str
    clip: ClipConfig
    clips: int
    kept: Kept


class BucketedClips(MixedClips):
    """The sets of a run's buckets, laid one after another.

    rows: of the buckets' table, those without clips too. left_out: id -> reason, of clips that are in no bucket.
    """

    WORD = "list of buckets"
    WITHOUT = "of a run without buckets: leave them out, or start a new run"

    def __init__(
        self, sets: Sequence[MixedSet], rows: Sequence[BucketRow] = (), left_out: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sets)
        self.rows, self._in_none = tuple(rows), dict(left_out or {})

    @property
    def left_out(self) -> dict[str, str]:
        return {**self._in_none, **super().left_out}

    def shape_of(self, index: int) -> ClipConfig:
        """The shape of a clip."""
        return self.set_of(index).clips.cache.clip


def batches_of_one_shape(clips: LatentDataset, count: int, batch: int) -> Iterator[list[int]]:
    """Indices of the first `count` clips, of buckets by their shares, in batches of one shape and at most `batch`."""
    parts, first = [(len(clips), count)], 0
    if isinstance(clips, BucketedClips):
        sizes = [len(each.clips) for each in clips.sets]
        parts = list(zip(sizes, apportioned(count, [size / sum(sizes) for size in sizes]), strict=True))
    for size, own in parts:
        for begin in range(first, first + own, batch):
            yield list(range(begin, min(begin + batch, first + own)))
        first += size


def rows_of_sorted(found: SortedClips) -> list[BucketRow]:
    """The rows of a list's buckets."""
    return [BucketRow(bucket_name(each.clip), each.clip, len(each.entries), each.kept) for each in found.buckets]


def bucket_table(
    rows: Sequence[BucketRow], left_out: int, clips_per_step: int | None = None, processes: int = 1
) -> list[str]:
    """Lines of a table: of each bucket its clips, what it keeps of them (`bucket_choice`), and its tokens.

    left_out: clips that are in none. clips_per_step: of an optimizer step; None: not known. processes: those that share
    a clip's video tokens. padding: the share of their places that stays empty where tokens do not divide evenly.
    """
    whole = max(1, sum(each.clips for each in rows))
    head = ["bucket", "clips", "share", "picture kept", "time kept", "detail", "padding", "tokens"]
    lines = [head + (["tokens/step", "steps/epoch"] if clips_per_step else [])]
    for each in rows:
        video, tokens = each.clip.video_tokens, clip_tokens(each.clip)
        padding = 1 - video / (processes * max(lengths_of(video, processes)))
        shares = [_percent(float(share)) if each.clips else "-" for share in each.kept]
        line = [each.name, str(each.clips), _percent(each.clips / whole), *shares, _percent(padding), str(tokens)]
        if clips_per_step:
            line += [str(tokens * clips_per_step), f"{each.clips / clips_per_step:.1f}"]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return table + (
        [f"{counted(left_out, 'clip')} in no bucket: too short for all, or not readable"] if left_out else []
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
