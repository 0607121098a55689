"""The steps that a unit goes through, with what their results depend on: a change of that, and nothing else, makes them
run anew.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mova_engine.config.curate import CurateConfig
from mova_engine.curation.clip_prints import DUPLICATE, prints_step
from mova_engine.curation.cut_signals import CUT_VERSION
from mova_engine.curation.ledger import LedgerStep
from mova_engine.curation.verdicts import Judge
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.score_table import SCORES

# Steps that are no scores: cutting films into clips, and reading a clip that is to be measured.
CUT, DECODE = "cut", "decode"


@dataclass(frozen=True)
class UnitSteps:
    """cut: clips and their signals. scores: {score: its step}. prints: fingerprints, None: nobody asks for duplicates.
    failed: units that were put aside, and why.
    """

    cut: LedgerStep
    scores: Mapping[str, LedgerStep]
    prints: LedgerStep | None
    failed: LedgerStep

    @classmethod
    def of(cls, config: CurateConfig, judge: Judge, runner: ScoreRunner) -> "UnitSteps":
        """judge: whose scores may be measured. Raises MovaError where weights of one are missing."""
        settings = asdict(config.cut)
        # Which part of a film a unit is belongs to the unit.
        del settings["unit_seconds"]
        cut = LedgerStep.made_of(
            CUT, {"version": CUT_VERSION, "cut": settings, "clip": [config.shape.frames, config.shape.fps]}
        )
        steps = {name: LedgerStep.made_of(f"score-{name}", runner.facts(SCORES[name])) for name in judge.scores}
        prints = prints_step() if DUPLICATE in judge.columns else None
        # A unit that failed is tried again where anything of its work is another.
        failed = LedgerStep.made_of(
            "failed", {step.name: step.fingerprint for step in (cut, *steps.values(), *([prints] if prints else []))}
        )
        return cls(cut, steps, prints, failed)
