"""Scores of pictures alone: shots, motion, text."""

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
    ),
    Score(
        "transitions",
        f"{_HERE}:transitions",
        (
            ScoreColumn("shots_with_dissolves", "", "shots, divided by dissolves too", 1, None),
            ScoreColumn("dissolves", "", "dissolves and fades", 0, None),
            ScoreColumn("shot_seconds_shortest_with_dissolves", "s", "length of the shortest of them", 0, None),
        ),
        check=f"{_HERE}:check_transitions",
        on_request=True,
    ),
    Score(
        "motion",
        f"{_HERE}:motion",
        (
            ScoreColumn("motion", "heights/s", "mean speed over the picture, in its heights a second", 0, None),
            ScoreColumn("still_share", "", "share of time in which nothing moves", 0, 1),
        ),
        check=f"{_HERE}:check_opencv",
    ),
)
