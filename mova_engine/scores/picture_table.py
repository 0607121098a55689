"""Scores of pictures alone that need no network."""

from mova_engine.scores.score_declaration import Score, ScoreColumn

_HERE = "mova_engine.scores.picture_scores"
PICTURE_SCORES = (
    Score(
        "shots",
        f"{_HERE}:shots",
        (
            ScoreColumn("shots", "", "shots, divided by hard cuts and black", 1, None),
            ScoreColumn("shot_seconds_shortest", "s", "length of the shortest shot", 0, None),
        ),
        check=f"{_HERE}:check_opencv",
        version=2,
    ),
    Score(
        "motion",
        f"{_HERE}:motion",
        (
            ScoreColumn("motion", "heights/s", "mean speed over the picture, in its heights a second", 0, None),
            ScoreColumn("still_share", "", "share of time in which nothing moves", 0, 1),
        ),
        check=f"{_HERE}:check_opencv",
        version=2,
    ),
    Score(
        "overlays",
        f"{_HERE}:overlays",
        (ScoreColumn("overlay_area", "", "share of the picture under logos and other things laid over it", 0, 1),),
        on_request=True,
    ),
)
