"""Tagged transcripts to cpCER: every step from the recogniser's reply to the corpus' percentage."""

from typing import Any

import torch

from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import speaker_errors as errors


def run_transcripts(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """All recorded pairs, the corpus, untagged references, recognisers' replies and times."""
    recorded = case.values
    pairs = [_pair(pair) for pair in recorded["pairs"]]
    total = sum((_counts(pair)[1].count for pair in recorded["pairs"]), errors.ErrorCount(0, 0))
    corpus = {
        "cpcer_percent": total.percent,
        "total_errors": total.errors,
        "total_characters": total.characters,
        "mean_of_samples_percent_for_comparison": sum(pair["cpcer_percent"] for pair in pairs) / len(pairs),
    }
    untagged = [
        pair | {"cpcer_percent": errors.cp_cer(pair["reference"], pair["hypothesis"]).count.percent}
        for pair in recorded["references_without_tags"]
    ]
    replies = [
        {"response": reply["response"], "text": errors.recognised_text(reply["response"])}
        for reply in recorded["recogniser_responses"]
    ]
    times = {time: errors.seconds_of(time) for time in recorded["time_strings_to_seconds"]}
    return EvaluationOutcome(
        values={
            "pairs": pairs,
            "corpus": corpus,
            "references_without_tags": untagged,
            "recogniser_responses": replies,
            "time_strings_to_seconds": times,
            "ignored_characters": {"spaces": list(errors.SPACES), "marks": list(errors.MARKS)},
        }
    )


def _counts(pair: dict[str, Any]) -> tuple[str, errors.SpeakerComparison]:
    cleaned = errors.clean_transcript(pair["raw_hypothesis"])
    return cleaned, errors.cp_cer(pair["reference"], cleaned)


def _pair(pair: dict[str, Any]) -> dict[str, Any]:
    cleaned, found = _counts(pair)
    reference = pair["reference"]
    return {
        "what": pair["what"],
        "raw_hypothesis": pair["raw_hypothesis"],
        "reference": reference,
        "post_processed": cleaned,
        "hypothesis_by_speaker": errors.by_speaker(cleaned),
        "reference_by_speaker": errors.by_speaker(reference),
        "cost_matrix_rows_reference_columns_hypothesis": found.costs,
        "assignment_reference_to_hypothesis": [list(pair) for pair in found.assignment],
        "distance": found.count.errors,
        "reference_characters": found.count.characters,
        "error_characters": found.count.errors,
        "cpcer_percent": found.count.percent,
        "cer_ignoring_speakers_percent": errors.cer_without_speakers(reference, cleaned).percent,
        "speaker_sequence_cpcer_percent": errors.speaker_sequence_error(reference, cleaned).percent,
    }


CASE = CaseRunner(
    run_transcripts,
    {"values.*percent*": Bound(1e-9, "absolute"), "values.time_strings_to_seconds.*": Bound(1e-9, "absolute")},
)
