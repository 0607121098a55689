"""How a score is declared: what it measures, in which columns, by which function, with which weights. Data alone.

A score's function is called with a clip that was decoded once for all scores, and with what its declaration names:

    function(clip)                                       a score without weights
    function(clip, network, convention)                  a score with weights, on the device where they were opened
    function(clip, network, convention, prompt=text)     a score that declares prompt=True

network: what `weights_manifest` opens of its file, or {name: that} where the score names several files; a module is on
the device that the user chose, in eval mode and without gradients. A score without weights that declares several
conventions is called with `convention=` too. The function is called from several threads. It returns {column: number},
or `Measured` (mova_engine.scores.decoded_clip) with evidence beside the numbers (what JSON knows, and NumPy arrays in
its dicts and lists) and with the reason where some numbers are missing. It raises MovaError, with the reason, where the
clip does not admit a number. A column that it leaves out is a number that is missing.
"""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", ""]
# Whose definition a number follows: the paper's own scripts, hkchengrex/av-benchmark, or ours, which mends both.
CONVENTIONS = ("mova", "av-benchmark", "corrected")


@dataclass(frozen=True)
class ScoreColumn:
    """One number of a score. low, high: its range (None: open). better: "up", "down", or "" where neither is."""

    name: str
    unit: str
    about: str
    low: float | None = None
    high: float | None = None
    better: Direction = ""


@dataclass(frozen=True)
class SetNumber:
    """One number of a whole set of clips, from the evidence of each, such as an inception score.

    target: "module:function", called with the list of the clips' evidence and the convention, and with the list of the
    reference's clips between them where `reference` says so: function(evidence, reference, convention). It returns a
    float, or (float, note) where the report should say what weakens the number; it raises MovaError, with the reason,
    where the set admits none. reference: "set" compares with another set, "pairs" with that set's clips of the same
    names, in the same order. resamples: how many sets of clips are drawn anew for an interval; 0 where that makes no
    sense or costs too much.
    """

    name: str
    unit: str
    about: str
    target: str
    better: Direction = ""
    reference: Literal["", "set", "pairs"] = ""
    resamples: int = 0


@dataclass(frozen=True)
class Score:
    """target: "module:attribute" of the function, imported only when it is used.

    version: rises when the same clip gets another number. conventions: those that it can follow; asked for another, it
    follows its first. check: "module:function" that raises MovaError where this machine lacks a package or a file of a
    wheel that the score needs. chance: "module:function" of two clips' evidence, the sound of one and the pictures of
    the other, which gives the numbers of such a pair; with chance_network=True it is called with network and convention
    too.

    on_request: measured only where it is named, as it takes seconds a clip for little more than another score says.
    transcripts: called with (what is said, what was heard, convention) in place of a clip; `mova eval --transcripts`.
    weights: names of the files in `weights_manifest` that it reads. prompt: the clip's caption is an argument.
    set_numbers: what the evidence of all clips gives.
    """

    name: str
    target: str
    columns: tuple[ScoreColumn, ...]
    version: int = 1
    conventions: tuple[str, ...] = ("corrected",)
    check: str = ""
    chance: str = ""
    chance_network: bool = False
    on_request: bool = False
    transcripts: bool = False
    weights: tuple[str, ...] = ()
    prompt: bool = False
    set_numbers: tuple[SetNumber, ...] = ()

    def convention(self, asked: str) -> str:
        """The convention that the score follows where `asked` is wanted."""
        return asked if asked in self.conventions else self.conventions[0]
