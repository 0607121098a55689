"""What a bench is: clips that are asked for, by id, and the numbers that are asked of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# How one number comes from many: the mean of the categories' means, or the mean over all clips.
Rule = Literal["categories", "clips"]


@dataclass(frozen=True)
class BenchItem:
    """A clip that is asked for. id: what its file's name begins with. transcript: what is said, speakers tagged as
    "[S01] words [S02] words". reference: a recording that it is compared with.
    """

    id: str
    category: str
    prompt: str = ""
    transcript: str = ""
    reference: Path | None = None


@dataclass(frozen=True)
class AskedNumber:
    """A number as the bench names it.

    column: of a score, or a number of a set of clips. categories: those whose clips it is asked of; (): all.
    per: a column by which the sum of `column` over clips is divided; "": `column` is averaged by `rule`.
    """

    name: str
    score: str
    column: str
    rule: Rule = "clips"
    categories: tuple[str, ...] = ()
    per: str = ""


@dataclass(frozen=True)
class Bench:
    """name: of a known bench, or a folder's. numbers: what it asks for; (): every number of every score, by `rule`.

    notes: what is unlike the published bench.
    """

    name: str
    source: Path
    items: tuple[BenchItem, ...]
    numbers: tuple[AskedNumber, ...] = ()
    rule: Rule = "clips"
    notes: tuple[str, ...] = field(default=())

    @property
    def categories(self) -> tuple[str, ...]:
        """In the order in which the bench has them."""
        return tuple(dict.fromkeys(item.category for item in self.items))

    def asked(self, categories: Sequence[str] = ()) -> list[BenchItem]:
        """The clips of some categories; without any, all."""
        return [item for item in self.items if not categories or item.category in categories]
