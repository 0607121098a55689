"""Whole matrices for what cannot be computed of their rows alone: each rank gets some of them, and gives rows back.

Of matrices whose rows are divided over the ranks, rank i owns a run, and receives the others' rows of these by one
all-to-all; a second one returns what it made of them. Each rank sends and receives (p - 1) / p of its own rows each
way, whatever the number of matrices, and no matrix is computed twice.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mova_engine.distributed.collectives import Group
from mova_engine.distributed.fsdp import rows_of


class WholeMatrices:
    """`count` matrices of one shape, divided over the ranks of a group as FSDP divides rows. Collective: all ranks
    exchange the same matrices in the same order.
    """

    def __init__(self, count: int, shape: Sequence[int], group: Group) -> None:
        self.group, (_, self.columns) = group, shape
        self.owned = [rows_of(count, group.size, rank)[1] for rank in range(group.size)]
        self.rows = [rows_of(shape[0], group.size, rank)[1] for rank in range(group.size)]

    def gather(self, rows: Sequence[Tensor]) -> Callable[[], Tensor]:
        """Start sending this rank's rows [r_i, c] of each matrix to the matrix's owner, in one dtype. Returns a
        function that waits and returns the owned matrices, whole [n, r, c].
        """
        send, receive = self._sizes()
        wait = self.group.all_to_all(torch.stack(list(rows)).flatten(), send, receive)
        own = self.owned[self.group.rank]

        def finish() -> Tensor:
            parts = wait().split(receive)
            shaped = [part.view(own, rows, self.columns) for part, rows in zip(parts, self.rows, strict=True)]
            return shaped[0] if len(shaped) == 1 else torch.cat(shaped, 1)

        return finish

    def scatter(self, whole: Tensor) -> list[Tensor]:
        """Return this rank's rows [r_i, c] of every matrix, of which each rank gives those that it owns [n, r, c]."""
        send, receive = self._sizes()
        pieces = [part.reshape(-1) for part in whole.split(self.rows, 1)]
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        given = self.group.all_to_all(flat, receive, send)()
        return list(given.view(sum(self.owned), self.rows[self.group.rank], self.columns).unbind())

    def _sizes(self) -> tuple[list[int], list[int]]:
        """Elements that go to each rank when matrices are gathered, and that come from each."""
        rank = self.group.rank
        send = [owned * self.rows[rank] * self.columns for owned in self.owned]
        return send, [self.owned[rank] * rows * self.columns for rows in self.rows]
