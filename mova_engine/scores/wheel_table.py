"""Scores whose networks an installed wheel carries: nothing has to be fetched."""

from mova_engine.scores.score_declaration import Score, ScoreColumn

_CLIP = "mova_engine.scores.clip_scores"
WHEEL_SCORES = (
    Score(
        "dnsmos",
        f"{_CLIP}:dnsmos",
        (
            ScoreColumn("dnsmos_p808", "MOS", "overall quality of speech, P.808", 1, 5, "up"),
            ScoreColumn("dnsmos_sig", "MOS", "speech itself, P.835", 1, 5, "up"),
            ScoreColumn("dnsmos_bak", "MOS", "absence of background noise, P.835", 1, 5, "up"),
            ScoreColumn("dnsmos_ovrl", "MOS", "overall, P.835", 1, 5, "up"),
        ),
        check=f"{_CLIP}:check_dnsmos",
    ),
)
