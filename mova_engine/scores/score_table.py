"""The scores of a clip by name, each declared once in the table of its kind (see score_declaration)."""

from mova_engine.scores.network_table import NETWORK_SCORES
from mova_engine.scores.picture_table import PICTURE_SCORES
from mova_engine.scores.signal_table import SIGNAL_SCORES
from mova_engine.scores.transcript_table import TRANSCRIPT_SCORES
from mova_engine.scores.wheel_table import WHEEL_SCORES

_TABLES = (*SIGNAL_SCORES, *PICTURE_SCORES, *WHEEL_SCORES, *TRANSCRIPT_SCORES, *NETWORK_SCORES)
SCORES = {score.name: score for score in _TABLES}
COLUMNS = {column.name: column for score in SCORES.values() for column in score.columns}
