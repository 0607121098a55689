"""Scores whose networks an installed wheel carries: nothing has to be fetched."""

from mova_engine.scores.score_declaration import Score, ScoreColumn

_CLIP = "mova_engine.scores.clip_scores"
_PICTURE = "mova_engine.scores.picture_scores"
_SPEECH = "mova_engine.scores.speech_scores"
WHEEL_SCORES = (
    Score(
        "dnsmos",
        f"{_CLIP}:dnsmos",
        (
            # Outputs are not bounded; ratings of 1 to 5 are what the networks were taught. A short tone has BAK 0.97.
            ScoreColumn("dnsmos_p808", "MOS", "overall quality of speech, P.808, 1 to 5", better="up"),
            ScoreColumn("dnsmos_sig", "MOS", "speech itself, P.835, 1 to 5", better="up"),
            ScoreColumn("dnsmos_bak", "MOS", "absence of background noise, P.835, 1 to 5", better="up"),
            ScoreColumn("dnsmos_ovrl", "MOS", "overall, P.835, 1 to 5", better="up"),
        ),
        conventions=("corrected", "mova"),
        check=f"{_CLIP}:check_dnsmos",
    ),
    Score(
        "speech-activity",
        f"{_SPEECH}:speech_activity",
        (
            ScoreColumn("speech_share", "", "share of the sound in which somebody speaks", 0, 1),
            ScoreColumn("speech_seconds", "s", "length of the speech", 0, None),
            ScoreColumn("longest_pause", "s", "longest pause between speech and speech", 0, None),
        ),
        check=f"{_SPEECH}:check_speech_activity",
        version=2,
    ),
    Score(
        "speakers",
        f"{_SPEECH}:speakers",
        (
            ScoreColumn("speakers", "", "how many speak, each alone for a second at least", 0, None),
            ScoreColumn("speaker_main", "", "share of the speech that is the most heard speaker's", 0, 1),
            ScoreColumn("speakers_together", "", "share of the speech in which several talk at once", 0, 1),
        ),
        check=f"{_SPEECH}:check_speakers",
        on_request=True,
    ),
    Score(
        "transitions",
        f"{_PICTURE}:transitions",
        (
            ScoreColumn("shots_with_dissolves", "", "shots, divided by dissolves too", 1, None),
            ScoreColumn("dissolves", "", "dissolves and fades", 0, None),
            ScoreColumn("shot_seconds_shortest_with_dissolves", "s", "length of the shortest of them", 0, None),
        ),
        check=f"{_PICTURE}:check_transitions",
        version=2,
        on_request=True,
    ),
    Score(
        "text",
        f"{_PICTURE}:text",
        (
            ScoreColumn("text_area", "", "mean share of the picture that text covers", 0, 1),
            ScoreColumn("text_share", "", "share of time with text", 0, 1),
            ScoreColumn("text_persistence", "", "largest share of time with text at one place", 0, 1),
            ScoreColumn("text_overlay", "", "share of time with text laid over a moving picture", 0, 1),
        ),
        check=f"{_PICTURE}:check_text",
        on_request=True,
    ),
)
