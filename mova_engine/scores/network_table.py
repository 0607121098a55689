"""Scores whose networks need weights that the user names: `mova eval --weights DIR`."""

from mova_engine.scores.score_declaration import Score

NETWORK_SCORES: tuple[Score, ...] = ()
