"""Scores of what was heard in a clip: `mova eval --transcripts FILE`."""

from mova_engine.scores.score_declaration import Score, ScoreColumn, SetNumber

_HERE = "mova_engine.scores.transcript_errors"
_DRAWS = 1000
TRANSCRIPT_SCORES = (
    Score(
        "cpcer",
        f"{_HERE}:transcript_errors",
        (
            ScoreColumn(
                "cpcer", "", "character errors under the best assignment of speakers, by characters", 0, None, "down"
            ),
            ScoreColumn("cer", "", "character errors without speakers, by characters", 0, None, "down"),
            ScoreColumn("wer", "", "word errors without speakers, by words", 0, None, "down"),
            ScoreColumn("cpcer_errors", "", "characters that cpcer counts as wrong", 0, None, "down"),
            ScoreColumn("cpcer_characters", "", "characters that should be said", 0, None),
            ScoreColumn("speakers_missed", "", "speakers who should be heard and are not", 0, None, "down"),
            ScoreColumn("speakers_invented", "", "speakers who are heard and should not be", 0, None, "down"),
        ),
        conventions=("corrected", "mova"),
        transcripts=True,
        set_numbers=(
            SetNumber(
                "corpus_cpcer",
                "",
                "errors of all clips by their characters",
                f"{_HERE}:corpus_cpcer",
                "down",
                resamples=_DRAWS,
            ),
            SetNumber("corpus_cer", "", "the same without speakers", f"{_HERE}:corpus_cer", "down", resamples=_DRAWS),
            SetNumber("corpus_wer", "", "the same of words", f"{_HERE}:corpus_wer", "down", resamples=_DRAWS),
        ),
    ),
)
