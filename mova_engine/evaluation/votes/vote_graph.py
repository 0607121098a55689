"""Whether votes can place systems on one scale: who was compared with whom, and who ever lost to whom."""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from mova_engine.evaluation.votes.cast_votes import Floats


def compared_groups(wins: Floats) -> list[list[int]]:
    """Groups of systems that votes connect, largest first; within one all can stand on a scale. wins [k, k]: as of
    `CastVotes.wins`.
    """
    return _groups(wins + wins.T > 0, "weak")


def unbeaten_groups(wins: Floats) -> list[list[int]]:
    """Groups of systems between which wins go both ways, of which there is one where strengths are finite.

    With more than one, some group won every vote against another, and any distance between them, however large, fits
    the votes better than a smaller one (Ford 1957). Best group first.
    """
    groups = _groups(wins > 0, "strong")
    rate = [wins[group].sum() / max(1e-9, wins[group].sum() + wins[:, group].sum()) for group in groups]
    return [groups[place] for place in np.argsort(rate, kind="stable")[::-1]]


def _groups(edges: np.ndarray, connection: str) -> list[list[int]]:
    count, label = connected_components(csr_array(edges), directed=True, connection=connection)
    groups = [np.flatnonzero(label == number).tolist() for number in range(count)]
    return sorted(groups, key=lambda group: (-len(group), group))
